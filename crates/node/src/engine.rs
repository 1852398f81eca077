//! The one place that names the checkpoint engine: everything else here speaks of these types.

pub use cpr_image::{Image, PendingImage};
pub use cpr_native::{
    After, Blocker, CheckpointReport, CheckpointRequest, Destination, Event, Observer, Rebirth, RestartRequest,
    Restarted, TcpPolicy, check, check_restart, checkpoint, restart,
};
