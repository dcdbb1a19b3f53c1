"""Real processes and sockets for the tests: daemons, clients, interpreters."""
