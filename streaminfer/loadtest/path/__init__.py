"""The whole path of a stream: device, real encoder, network, CDN edge, decoder, service, with the age at the viewer."""

from typing import TYPE_CHECKING

from streaminfer._internal.loading.lazy import lazy_attributes

if TYPE_CHECKING:
    from streaminfer.loadtest.path.cdn_edge import CdnEdge
    from streaminfer.loadtest.path.codec_thread import CodecThread
    from streaminfer.loadtest.path.device_group import DeviceGroup, run_devices
    from streaminfer.loadtest.path.media_path import Edge, MediaPath
    from streaminfer.loadtest.path.network import DelayTrace, Link, NetworkProfile, network_names, network_profile
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
    "PacketPath",
    "PathService",
    "Scene",
    "Transfer",
    "UdpRelay",
    "Undecodable",
    "Uplink",
    "WebRtcLeg",
    "WebRtcPath",
    "network_names",
    "network_profile",
    "run_devices",
]

_HOMES = {
    "Arrival": "loadtest.path.uplink",
    "CdnEdge": "loadtest.path.cdn_edge",
    "CodecThread": "loadtest.path.codec_thread",
    "DelayTrace": "loadtest.path.network",
    "DeviceGroup": "loadtest.path.device_group",
    "Edge": "loadtest.path.media_path",
    "FrameLost": "loadtest.path.path_service",
    "Link": "loadtest.path.network",
    "LostAtEncoder": "loadtest.path.path_service",
    "LostInNetwork": "loadtest.path.path_service",
    "MediaPath": "loadtest.path.media_path",
    "NetworkProfile": "loadtest.path.network",
    "PacketPath": "loadtest.path.packets.packet_path",
    "PathService": "loadtest.path.path_service",
    "Scene": "loadtest.path.scene",
    "Transfer": "loadtest.path.transfer",
    "UdpRelay": "loadtest.path.webrtc.udp_relay",
    "Undecodable": "loadtest.path.path_service",
    "Uplink": "loadtest.path.uplink",
    "WebRtcLeg": "loadtest.path.webrtc.webrtc_leg",
    "WebRtcPath": "loadtest.path.webrtc.webrtc_path",
    "network_names": "loadtest.path.network",
    "network_profile": "loadtest.path.network",
    "run_devices": "loadtest.path.device_group",
}

if not TYPE_CHECKING:  # type checkers know the names from the block above, and refuse others
    __getattr__, __dir__ = lazy_attributes(__name__, _HOMES)
