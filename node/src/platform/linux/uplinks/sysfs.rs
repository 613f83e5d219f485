//! What sysfs says of the device behind an interface, which netlink does not.

use std::fs;
use std::path::Path;

/// The device of one interface; nothing is known where sysfs shows another network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Hardware {
    /// It is a radio of IEEE 802.11.
    pub(super) is_wireless: bool,
    /// The kernel's word for what kind of device it is (`DEVTYPE`): `wlan`, `wwan`, `bridge`, …
    pub(super) device_type: String,
    /// Name of its driver.
    pub(super) driver: String,
}

/// Looks at the device of `interface`.
pub(super) fn hardware(interface: &str, index: u32) -> Hardware {
    let folder = Path::new("/sys/class/net").join(interface);
    let text = |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_default();
    // An interface of the same name in another namespace has another number, mostly.
    if text("ifindex").trim().parse() != Ok(index) {
        return Hardware::default();
    }
    let uevent = text("uevent");
    let device_type = uevent.lines().find_map(|line| line.strip_prefix("DEVTYPE="));
    let driver = fs::read_link(folder.join("device/driver")).unwrap_or_default();
    Hardware {
        is_wireless: folder.join("wireless").exists() || folder.join("phy80211").exists(),
        device_type: device_type.unwrap_or_default().to_owned(),
        driver: driver.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
    }
}
