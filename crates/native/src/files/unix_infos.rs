//! What sock_diag(7) says of UNIX sockets. The kernel looks through all of a network namespace to find one, so that they
//! are asked for one by one only while they are few.

use std::cell::RefCell;
use std::collections::HashMap;

use cpr_image::model::NetworkId;
use cpr_kernel::socket::{self as kernel, SocketInfo};
use cpr_types::{Context, Result};

use crate::networks::Networks;

/// So many are asked for one by one.
const FEW: usize = 32;

/// Answers that were given, for as long as nothing changes or changes do not matter: the job stands still, or it is one
/// look at a running one.
#[derive(Debug, Default)]
pub struct UnixInfos {
    networks: RefCell<HashMap<Option<NetworkId>, Known>>,
}

#[derive(Debug, Default)]
struct Known {
    asked: usize,
    /// All that were there when there had been many questions.
    all: HashMap<u32, SocketInfo>,
}

impl UnixInfos {
    /// The socket with this inode number in a namespace; none if there is no such.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn of(&self, network: Option<NetworkId>, inode: u32, networks: &Networks) -> Result<Option<SocketInfo>> {
        let mut all = self.networks.borrow_mut();
        let known = all.entry(network).or_default();
        known.asked += 1;
        if known.asked == FEW {
            known.all = networks.within(network, || kernel::infos().context(|| "list UNIX sockets"))?;
        }
        if let Some(info) = known.all.get(&inode) {
            return Ok(Some(info.clone()));
        }
        networks.within(network, || {
            kernel::info(inode).context(|| format!("ask the kernel about UNIX socket {inode}"))
        })
    }
}
