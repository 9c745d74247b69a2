"""A lossy proxy between a client and its broker: on demand it loses the broker's next answer to a produce request.

The request itself arrives: the record is written, and the client cannot know. It speaks HTTP CONNECT, which
kafka-python takes as `proxy_url`; so no broker needs another address.
"""

import contextlib
import select
import socket
import socketserver
import struct
import threading

PRODUCE = 0  # the API key (Kafka's protocol guide)


class LossyProxy:
    """`with LossyProxy() as proxy: KafkaProducer(proxy_url=proxy.url, ...)`; `proxy.lose_next_answer()`."""

    def __init__(self):
        self._armed, self.lost = threading.Event(), 0
        proxy = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                proxy._tunnel(self.request)

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def lose_next_answer(self) -> None:
        """The next produce request reaches the broker; its answer is lost, and the connection with it."""
        self._armed.set()

    def _tunnel(self, client: socket.socket) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += client.recv(1)
        host, port = head.split()[1].decode().rsplit(":", 1)
        with contextlib.suppress(OSError), socket.create_connection((host, int(port))) as broker:
            client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            while True:
                for ready in select.select([client, broker], [], [])[0]:
                    message = _message(ready)
                    if ready is broker:
                        client.sendall(message)
                        continue
                    broker.sendall(message)
                    (api_key,) = struct.unpack_from(">h", message, 4)
                    if api_key == PRODUCE and self._armed.is_set():
                        self._armed.clear()
                        _message(broker)  # the broker has written it and says so: nobody hears
                        self.lost += 1
                        return


def _message(connection: socket.socket) -> bytes:
    """One whole request or response: four bytes of size, and so many more."""
    size = _exactly(connection, 4)
    return size + _exactly(connection, struct.unpack(">i", size)[0])


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = connection.recv(count - len(data))
        if not more:
            raise OSError("closed")
        data += more
    return data
