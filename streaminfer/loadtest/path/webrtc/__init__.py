"""WebRTC with its real transport through a lossy relay, on the path of a load test."""
