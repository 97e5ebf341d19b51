"""Whole path of a stream, from the device through encoder, network, CDN edge, decoder and service to the viewer."""

from typing import TYPE_CHECKING

from streaminfer._internal.loading.lazy import lazy_attributes

if TYPE_CHECKING:
    from streaminfer.loadtest.path.cdn_edge import CdnEdge
    from streaminfer.loadtest.path.codec_thread import CodecThread
    from streaminfer.loadtest.path.device_group import DeviceGroup, run_devices
    from streaminfer.loadtest.path.media_path import Edge, MediaPath
    from streaminfer.loadtest.path.network import DelayTrace, Link, NetworkProfile, network_names, network_profile
    from streaminfer.loadtest.path.nginx import Nginx, find_nginx, run_nginx
    from streaminfer.loadtest.path.packets.packet_path import PacketPath
    from streaminfer.loadtest.path.path_service import FrameLost, LostAtEncoder, LostInNetwork, PathService, Undecodable
    from streaminfer.loadtest.path.scene import Scene
    from streaminfer.loadtest.path.transfer import Transfer
    from streaminfer.loadtest.path.uplink import Arrival, Uplink
    from streaminfer.loadtest.path.webrtc.udp_relay import UdpRelay
    from streaminfer.loadtest.path.webrtc.webrtc_leg import WebRtcLeg
    from streaminfer.loadtest.path.webrtc.webrtc_path import WebRtcPath

__all__ = [
    "Arrival",
    "CdnEdge",
    "CodecThread",
    "DelayTrace",
    "DeviceGroup",
    "Edge",
    "FrameLost",
    "Link",
    "LostAtEncoder",
    "LostInNetwork",
    "MediaPath",
    "NetworkProfile",
    "Nginx",
    "PacketPath",
    "PathService",
    "Scene",
    "Transfer",
    "UdpRelay",
    "Undecodable",
    "Uplink",
    "WebRtcLeg",
    "WebRtcPath",
    "find_nginx",
    "network_names",
    "network_profile",
    "run_devices",
    "run_nginx",
]

_HOMES = {
    "loadtest.path.cdn_edge": ["CdnEdge"],
    "loadtest.path.codec_thread": ["CodecThread"],
    "loadtest.path.device_group": ["DeviceGroup", "run_devices"],
    "loadtest.path.media_path": ["Edge", "MediaPath"],
    "loadtest.path.network": ["DelayTrace", "Link", "NetworkProfile", "network_names", "network_profile"],
    "loadtest.path.nginx": ["Nginx", "find_nginx", "run_nginx"],
    "loadtest.path.packets.packet_path": ["PacketPath"],
    "loadtest.path.path_service": ["FrameLost", "LostAtEncoder", "LostInNetwork", "PathService", "Undecodable"],
    "loadtest.path.scene": ["Scene"],
    "loadtest.path.transfer": ["Transfer"],
    "loadtest.path.uplink": ["Arrival", "Uplink"],
    "loadtest.path.webrtc.udp_relay": ["UdpRelay"],
    "loadtest.path.webrtc.webrtc_leg": ["WebRtcLeg"],
    "loadtest.path.webrtc.webrtc_path": ["WebRtcPath"],
}

if not TYPE_CHECKING:  # type checkers read the names from the block above and report others
    __getattr__, __dir__ = lazy_attributes(__name__, _HOMES)
