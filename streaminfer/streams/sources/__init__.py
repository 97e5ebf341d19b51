"""Sources of live streams: cameras, microphones, files and URLs, WebRTC tracks, messages of a WebSocket."""
