//! Whether an engine works on this node, and why it does not.

use cpr_kernel::namespace;
use cpr_types::{Error, ErrorKind, Result};
use serde::Serialize;

use crate::criu::Criu;
use crate::descriptor::{Descriptor, Driver};
use crate::dmtcp::Dmtcp;
use crate::external::External;
use crate::qemu::Qemu;

/// Oldest kernel the native engine works on.
const OLDEST_KERNEL: (u32, u32) = (6, 1);

/// What a look at this node has shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Probe {
    /// Version of the engine, where it is known.
    pub version: Option<String>,
    /// Why it does not work here; none where it does.
    pub reason: Option<String>,
}

impl Probe {
    /// Whether it works here.
    pub fn works(&self) -> bool {
        self.reason.is_none()
    }
}

impl Descriptor {
    /// Requires that a job of this engine can go on here before its memory is there.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] saying why not.
    pub fn require_lazy(&self) -> Result<()> {
        let refused = Error::new(
            ErrorKind::Unsupported,
            format!("engine {} cannot do what is asked for: --lazy", self.name),
        );
        match self.driver {
            Driver::Criu => Criu::require_lazy(self).map_err(|error| refused.with_source(error)),
            _ => Err(refused),
        }
    }

    /// Requires that the memory of a job of this engine can be copied here while it runs.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] saying why not.
    pub fn require_live(&self) -> Result<()> {
        let refused = Error::new(
            ErrorKind::Unsupported,
            format!("engine {} cannot do what is asked for: --live", self.name),
        );
        match self.driver {
            Driver::Native => Ok(()),
            Driver::Criu => Criu::require_live(self).map_err(|error| refused.with_source(error)),
            _ => Err(refused),
        }
    }

    /// Finds out whether the engine works on this node. Programs that are asked have a deadline.
    pub fn probe(&self) -> Probe {
        let (version, result) = match self.driver {
            Driver::Native => (Some(env!("CARGO_PKG_VERSION").to_string()), native()),
            Driver::Criu => {
                let (version, result) = Criu::probe(self);
                (version, result.map_err(|error| error.chain()))
            }
            // Whether a program can save itself, it alone knows.
            Driver::Application => (None, Ok(())),
            Driver::Qemu => match Qemu::probe(self) {
                Ok(version) => (version, Ok(())),
                Err(error) => (None, Err(error.chain())),
            },
            Driver::Dmtcp => match Dmtcp::probe(self) {
                Ok(version) => (version, Ok(())),
                Err(error) => (None, Err(error.chain())),
            },
            Driver::External => match External::probe(self) {
                Ok(version) => (version, Ok(())),
                Err(error) => (None, Err(error.chain())),
            },
        };
        Probe {
            version: version.or_else(|| self.version.clone()),
            reason: result.err(),
        }
    }
}

/// What is missing for the native engine.
fn native() -> std::result::Result<(), String> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release
        .split(['.', '-', '+'])
        .map_while(|part| part.parse::<u32>().ok());
    let kernel = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if kernel < OLDEST_KERNEL {
        let (major, minor) = OLDEST_KERNEL;
        return Err(format!("it needs Linux {major}.{minor}, and this is Linux {release}"));
    }
    // Documentation/admin-guide/LSM/Yama.rst: 3 is "no attach", for root also.
    if setting("/proc/sys/kernel/yama/ptrace_scope") == Some(3) {
        return Err("ptrace is off (sysctl kernel.yama.ptrace_scope is 3)".to_string());
    }
    if !namespace::is_admin() && setting("/proc/sys/user/max_user_namespaces") == Some(0) {
        return Err("unprivileged user namespaces are off (sysctl user.max_user_namespaces is 0)".to_string());
    }
    Ok(())
}

/// A number below /proc/sys; none where the kernel has no such setting.
fn setting(path: &str) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}
