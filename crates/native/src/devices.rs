//! Plug-ins for devices that the engine does not know (LBNL-2.4.10): whoever calls it may know more.

use std::fmt::Debug;
use std::os::fd::BorrowedFd;
use std::path::Path;

use cpr_types::Result;

/// What knows devices. A device that is open is found by the path it was opened by.
pub trait DevicePlugins: Debug + Send + Sync {
    /// The name of the plug-in for a device.
    fn find(&self, path: &Path) -> Option<String>;

    /// Whether there is a plug-in of that name that is for that path.
    ///
    /// # Errors
    /// [`cpr_types::ErrorKind::Incompatible`] where there is none.
    fn require(&self, plugin: &str, path: &Path) -> Result<()>;

    /// Asks a plug-in for the state of a device, of which `device` is the job's descriptor. The job stands still.
    ///
    /// # Errors
    /// The plug-in fails or takes too long.
    fn save(&self, plugin: &str, path: &Path, device: BorrowedFd<'_>) -> Result<String>;

    /// Has a plug-in give a device that was opened again its state.
    ///
    /// # Errors
    /// Those of [`DevicePlugins::require`]; the plug-in fails or takes too long.
    fn restore(&self, plugin: &str, path: &Path, device: BorrowedFd<'_>, state: &str) -> Result<()>;
}
