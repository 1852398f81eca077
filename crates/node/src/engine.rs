//! The one place that names the checkpoint engine: everything else here speaks of these types.

use std::sync::Arc;

use cpr_engines::Devices;
use cpr_native::devices::DevicePlugins;

pub use cpr_image::{Compression, Image, PendingImage};
pub use cpr_native::{
    After, Basis, Blocker, Channels, CheckpointReport, CheckpointRequest, Destination, Earlier, Event, Handover,
    JobControl, Keep, LazyRequest, Meeting, Method, Observer, Outward, Pages, Rebirth, Requester, RestartRequest,
    Restarted, Surroundings, TcpPolicy, Tracked, Verdict, channels, check, check_restart, checkpoint,
    outside::{self, Outside},
    policy::FileRule,
    restart,
};

/// What knows devices that the engine does not.
pub(crate) fn devices() -> Arc<dyn DevicePlugins> {
    Arc::new(Devices::load())
}
