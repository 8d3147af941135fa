# Sends a mail with Python's smtplib, whose server speaks first: smtp.py PORT.
import smtplib, sys

with smtplib.SMTP("127.0.0.1", int(sys.argv[1]), timeout=60) as s:
    s.ehlo("web.shop.example")
    s.sendmail("web@shop.example", ["ledger@shop.example"], "Subject: hello\r\n\r\n" + "a line\r\n" * 20000)
    print("sent")
