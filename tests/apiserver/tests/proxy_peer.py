"""Runs inside a network namespace: two servers that say who they are and echo, and a client that is told what to do.

Commands, one a line: `connect` opens a connection to the front and answers with the name of the server, or `refused`;
`echo N` sends a line over the N-th connection and answers with what came back.
"""
import socket
import sys
import threading

FRONT = ("10.96.0.1", 80)


def serve(address):
    listener = socket.create_server((address, 8000))
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=echo, args=(connection, address), daemon=True).start()


def echo(connection, address):
    connection.sendall(f"{address}\n".encode())
    while data := connection.recv(100):
        connection.sendall(data)


def say(text):
    print(text, flush=True)


for name in ("10.1.0.1", "10.1.0.2"):
    threading.Thread(target=serve, args=(name,), daemon=True).start()
connections = []
say("ready")
for line in sys.stdin:
    command, *rest = line.split()
    if command == "connect":
        try:
            made = socket.create_connection(FRONT, timeout=20)
            say(made.recv(100).decode().strip())
            connections.append(made)
        except OSError:
            # Refused, or there are no rules yet.
            say("refused")
    else:
        peer = connections[int(rest[0])]
        peer.sendall(b"still here")
        say(peer.recv(100).decode())
