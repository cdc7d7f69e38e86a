"""What the tests with real peers are driven by: processes, ports, peers, readings."""
