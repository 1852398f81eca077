//! `cprd check`: whether everything that a grid consists of is there, as this machine sees it (GFD93-SCOPE-5).

use std::net::{TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use cpr_api::model::{Node, NodeState, Page};
use cpr_types::{Context, Error, ErrorKind, Result};

use crate::config::Config;
use crate::stores::Store;
use crate::{grid_client, tls};

/// How long a node may take to take a connection.
const PATIENCE: Duration = Duration::from_secs(5);
/// The library that programs load.
const LIBRARY: &str = "libgridcpr.so";
/// Where the system keeps libraries.
const LIBRARIES: [&str; 5] = [
    "/usr/local/lib",
    "/usr/lib",
    "/usr/lib64",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
];

/// Looks at every part, and prints how it is.
///
/// # Errors
/// [`ErrorKind::Unsupported`] where one is missing; which one and why has been printed.
pub fn check(config: &Config) -> Result<()> {
    let nodes = config.check().and_then(|()| nodes(config));
    let parts = [
        ("configuration", config.check()),
        ("commands", commands(config)),
        ("library", library()),
        ("service", nodes.as_ref().map(drop).map_err(again)),
        ("nodes", nodes.as_ref().map_or(Ok(()), |nodes| ready(nodes))),
        ("transfer", nodes.as_ref().map_or(Ok(()), |nodes| transfer(nodes))),
        ("store", store(config)),
    ];
    let mut missing = Vec::new();
    for (name, result) in parts {
        match result {
            // Where the service is missing nothing is known of the nodes.
            Ok(()) if nodes.is_err() && matches!(name, "nodes" | "transfer") => println!("{name}: not known"),
            Ok(()) => println!("{name}: good"),
            Err(error) => {
                println!("{name}: missing: {}", error.chain());
                missing.push(name);
            }
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let what = format!("the grid is not complete: {}", missing.join(", "));
    Err(Error::new(ErrorKind::Unsupported, what))
}

/// The same error once more.
fn again(error: &Error) -> Error {
    Error::new(error.kind(), error.chain())
}

/// The nodes that the service knows, by which it is seen that it and its database answer.
fn nodes(config: &Config) -> Result<Vec<Node>> {
    let own = config.grid.socket.exists();
    let files = config.tls.files();
    let tls = files.map(tls::client).transpose()?.map(Arc::new);
    let client = grid_client(config, own)?.with_tls(tls).with_silence(PATIENCE);
    let page: Page<Node> = client.get("/v1/nodes")?;
    Ok(page.items)
}

/// `cpr`, which runs jobs.
fn commands(config: &Config) -> Result<()> {
    let own = std::env::current_exe().context(|| "find our own program")?;
    let beside = own.with_file_name("cpr");
    let cpr = match &config.node.cpr {
        Some(path) => path.clone(),
        None if beside.exists() => beside,
        None => PathBuf::from("cpr"),
    };
    let mut command = Command::new(&cpr);
    let command = command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null());
    let what = || format!("run {}", cpr.display());
    let status = command.stderr(Stdio::null()).status().context(what)?;
    match status.success() {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::Unsupported, format!("it ended with {status}"))).context(what),
    }
}

/// The library, beside us as it is installed, or where the system has its own.
fn library() -> Result<()> {
    let own = std::env::current_exe().context(|| "find our own program")?;
    let beside = own.parent().and_then(Path::parent).map(|prefix| prefix.join("lib"));
    let mut places = beside.into_iter().chain(LIBRARIES.map(PathBuf::from));
    match places.any(|place| place.join(LIBRARY).exists()) {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::NotFound, format!("there is no {LIBRARY}"))),
    }
}

/// Nodes that take jobs.
fn ready(nodes: &[Node]) -> Result<()> {
    match nodes.iter().any(|node| node.state == NodeState::Ready) {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::NotFound, "no node is ready")),
    }
}

/// Whether every node that takes jobs gives images where it says it does.
fn transfer(nodes: &[Node]) -> Result<()> {
    let ready = nodes.iter().filter(|node| node.state == NodeState::Ready);
    for node in ready.filter(|node| !node.info.address.is_empty()) {
        let what = || format!("reach {} at {}", node.info.name, node.info.address);
        let mut addresses = node.info.address.to_socket_addrs().context(what)?;
        let Some(address) = addresses.next() else {
            return Err(Error::new(ErrorKind::NotFound, "it has no address")).context(what);
        };
        TcpStream::connect_timeout(&address, PATIENCE).context(what)?;
    }
    Ok(())
}

/// The store that nodes share, where there is to be one.
fn store(config: &Config) -> Result<()> {
    for place in [&config.grid.store, &config.node.store].into_iter().flatten() {
        let what = || format!("look into the store {place}");
        Store::open(place, config)
            .and_then(|store| store.list())
            .context(what)?;
    }
    Ok(())
}
