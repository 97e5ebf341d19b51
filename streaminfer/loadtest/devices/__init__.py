"""Device profiles: cameras and microphones as data, recordings as a device makes them, and `probe` to measure one."""

from typing import TYPE_CHECKING

from streaminfer._internal.loading.lazy import lazy_attributes

if TYPE_CHECKING:
    from streaminfer.loadtest.devices.delivery import Delivery
    from streaminfer.loadtest.devices.library import device_names, device_profile
    from streaminfer.loadtest.devices.probing import DeviceMeasurement, probe
    from streaminfer.loadtest.devices.profile import CameraProfile, DeviceProfile, MicrophoneProfile
    from streaminfer.loadtest.devices.recording import record, render
    from streaminfer.loadtest.devices.timing import Timing

__all__ = [
    "CameraProfile",
    "Delivery",
    "DeviceMeasurement",
    "DeviceProfile",
    "MicrophoneProfile",
    "Timing",
    "device_names",
    "device_profile",
    "probe",
    "record",
    "render",
]

_HOMES = {
    "loadtest.devices.delivery": ["Delivery"],
    "loadtest.devices.library": ["device_names", "device_profile"],
    "loadtest.devices.probing": ["DeviceMeasurement", "probe"],
    "loadtest.devices.profile": ["CameraProfile", "DeviceProfile", "MicrophoneProfile"],
    "loadtest.devices.recording": ["record", "render"],
    "loadtest.devices.timing": ["Timing"],
}

if not TYPE_CHECKING:  # type checkers read the names from the block above and report others
    __getattr__, __dir__ = lazy_attributes(__name__, _HOMES)
