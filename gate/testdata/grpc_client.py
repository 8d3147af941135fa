"""Calls of grpcio through a gate, each of which prints what it saw. Arguments:
a target, and the authority to name, or nothing."""
import sys

import grpc

target, authority = sys.argv[1], sys.argv[2]
options = [("grpc.default_authority", authority)] if authority else []
with grpc.insecure_channel(target, options=options) as channel:
    def unary(name, text):
        call = channel.unary_unary("/pay.Pay/" + name, request_serializer=str.encode, response_deserializer=bytes.decode)
        try:
            print(name, call(text, timeout=20).split(" ")[0])
        except grpc.RpcError as err:
            print(name, err.code().name, err.details().split(" ")[0])

    unary("Charge", "10")
    unary("Charge", "declined")
    unary("Refund", "10")
    talk = channel.stream_stream("/pay.Pay/Talk", request_serializer=str.encode, response_deserializer=bytes.decode)
    print("Talk", *talk(iter(["a", "b"]), timeout=20), sep=", ")
