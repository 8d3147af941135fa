"""Takes a token as a cloud does: by nothing but its issuer. Prints its subject."""

import json
import ssl
import sys
import urllib.request

import jwt

issuer, ca, token = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
with urllib.request.urlopen(issuer + "/.well-known/openid-configuration", context=context) as answer:
    found = json.load(answer)
assert found["issuer"] == issuer
key = jwt.PyJWKClient(found["jwks_uri"], ssl_context=context).get_signing_key_from_jwt(token)
claims = jwt.decode(token, key.key, algorithms=found["id_token_signing_alg_values_supported"], audience="cloud", issuer=issuer)
print(claims["sub"])
