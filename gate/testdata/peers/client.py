# A WebSocket client made with websockets: client.py PORT HOST [CA-FILE].
import asyncio, ssl, sys
from websockets.asyncio.client import connect

port, host, ca = (sys.argv[1:] + [None])[:3]


async def main():
    more = {"ssl": ssl.create_default_context(cafile=ca), "server_hostname": host} if ca else {}
    uri = f"{'wss' if ca else 'ws'}://{host}/rooms/1"
    steps, large = [], b"merlon" * 50000
    async with connect(uri, host="127.0.0.1", port=int(port), subprotocols=["chat"], proxy=None, **more) as socket:
        steps.append(socket.subprotocol)
        await socket.send("hello")
        steps.append(await socket.recv())
        await socket.send(large)
        steps.append("true" if await socket.recv() == large else "false")
        await (await socket.ping("are you there"))
        steps.append("are you there")
        await socket.close(1000, "done")
        steps.append(socket.close_code)
    print(*steps)


asyncio.run(main())
