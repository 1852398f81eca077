//! Several hosts on this machine: each has a network, a PID and a mount namespace of its own, so that it can be cut off
//! and crash as a whole. They share the file system.

use std::fs;
use std::process::{Child, Command, Stdio};

use super::{LEASE_MS, Site, wait_until};

/// Port of the service.
const SERVICE_PORT: u16 = 7700;
/// Port of the agents.
const AGENT_PORT: u16 = 7701;

/// A host. When it is dropped, everything that runs on it dies.
struct Host {
    unshare: Child,
    init: String,
}

impl Host {
    fn new(name: &str) -> Host {
        // The shell is the first process: it reaps, and with it all others end.
        let first = format!("hostname {name}; ip link set lo up; while :; do sleep 1; done");
        let unshare = Command::new("unshare")
            .args([
                "--net",
                "--uts",
                "--pid",
                "--fork",
                "--kill-child=KILL",
                "--mount",
                "--mount-proc",
            ])
            .args(["sh", "-c", &first])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let path = format!("/proc/{0}/task/{0}/children", unshare.id());
        let mut init = String::new();
        wait_until("a host is up", || {
            init = fs::read_to_string(&path).unwrap_or_default().trim().to_string();
            !init.is_empty() && fs::read(format!("/proc/{init}/comm")).is_ok_and(|name| name == b"sh\n")
        });
        Host { unshare, init }
    }

    /// A command on it.
    fn command(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.init, "--net", "--uts", "--pid", "--mount", "--"]);
        command.stdin(Stdio::null());
        command
    }

    /// Runs `ip` in its network, with our view of processes.
    #[track_caller]
    fn ip(&self, arguments: &str) {
        let mut command = Command::new("nsenter");
        command
            .args(["-t", &self.init, "--net", "--", "ip"])
            .args(arguments.split_whitespace());
        let output = command.output().unwrap();
        assert!(output.status.success(), "ip {arguments}: {output:?}");
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
        // Until the kernel has killed all of them.
        wait_until("a host is down", || {
            !fs::exists(format!("/proc/{}", self.init)).unwrap_or(true)
        });
    }
}

/// The part of a configuration that says who `name` is on the network.
fn tls(name: &str) -> String {
    format!(
        "[tls]\nca = 'DIR/ca/ca.pem'\ncertificate = 'DIR/ca-issued/{name}.pem'\nkey = 'DIR/ca-issued/{name}.key'\n\
         revoked = 'DIR/ca/revoked.pem'\n"
    )
}

/// Writes who speaks to whom (addresses and ports), and the bytes of every TCP segment of connections that begin now,
/// each once and with its place.
const TAP: &str = "
import socket, struct, sys
tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
tap.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 20)
out = open(sys.argv[1], 'wb', 0)
seen, begun = set(), {}
while True:
    frame = tap.recv(1 << 16)
    if frame[12:14] != b'\\x08\\x00' or frame[23] != 6: continue
    ip = frame[14:]
    length, total = (ip[0] & 15) * 4, struct.unpack('>H', ip[2:4])[0]
    tcp = ip[length:total] if total else ip[length:]
    who, number = ip[12:20] + tcp[0:4], struct.unpack('>I', tcp[4:8])[0]
    if tcp[13] & 2: begun[who] = number + 1
    data = tcp[(tcp[12] >> 4) * 4:]
    if not data or who not in begun: continue
    at = (number - begun[who]) % (1 << 32)
    if (who, at, len(data)) in seen: continue
    seen.add((who, at, len(data)))
    out.write(who + struct.pack('>II', at, len(data)) + data)
";

/// Listens to a lab's network.
pub struct Tap {
    child: Child,
    file: std::path::PathBuf,
}

impl Tap {
    /// What was said, by who said it to whom (addresses and ports) in the order of its bytes.
    pub fn said(mut self) -> std::collections::BTreeMap<[u8; 12], Vec<u8>> {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let all = fs::read(&self.file).unwrap();
        let mut parts: std::collections::BTreeMap<[u8; 12], std::collections::BTreeMap<u32, &[u8]>> =
            Default::default();
        let mut rest = all.as_slice();
        while rest.len() >= 20 {
            let length = u32::from_be_bytes(rest[16..20].try_into().unwrap()) as usize;
            // The last one may be cut off.
            let Some(data) = rest.get(20..20 + length) else { break };
            let number = u32::from_be_bytes(rest[12..16].try_into().unwrap());
            parts
                .entry(rest[..12].try_into().unwrap())
                .or_default()
                .insert(number, data);
            rest = &rest[20 + length..];
        }
        parts
            .into_iter()
            .map(|(who, parts)| (who, parts.into_values().collect::<Vec<_>>().concat()))
            .collect()
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        // Where nobody has asked what was said.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A grid: a host with the service, and hosts `n1`, `n2`… with agents.
pub struct Lab {
    // In this order: nothing restarts jobs any more when the site ends them.
    service: Host,
    nodes: Vec<Option<Host>>,
    pub site: Site,
}

impl Lab {
    /// Starts it with so many nodes; `grid` is more configuration of the service, `node` of the agents.
    pub fn new(nodes: usize, grid: &str, node: &str) -> Lab {
        Lab::with(nodes, grid, node, |_| {})
    }

    /// The same, when the site's directory has what it needs besides.
    pub fn with(nodes: usize, grid: &str, node: &str, prepare: impl FnOnce(&Site)) -> Lab {
        let site = Site::new();
        prepare(&site);
        let service = Host::new("grid");
        // Else it has the lowest address of its ports, and another one when that port goes: nodes would send to the one
        // that is gone for up to half a minute.
        service.ip("link add br0 address 02:00:00:00:00:fe type bridge");
        service.ip("addr add 10.98.0.254/24 dev br0");
        service.ip("link set br0 up");
        site.ca("ca", &["init"]);
        site.issue("ca", &["grid", "--role", "service", "--host", "10.98.0.254"]);
        site.configure(
            "grid.toml",
            &format!(
                "[grid]\ndirectory = 'DIR/grid'\nsocket = 'DIR/cprd.sock'\ntokens = 'DIR/tokens'\n\
                 listen = ['10.98.0.254:{SERVICE_PORT}']\nlease_ms = {LEASE_MS}\nmargin_ms = 1500\n{grid}\n{}",
                tls("grid")
            ),
        );
        let mut lab = Lab {
            site,
            service,
            nodes: (0..nodes).map(|_| None).collect(),
        };
        lab.start_service();
        for number in 1..=nodes {
            let name = format!("n{number}");
            let host = format!("10.98.0.{number}");
            lab.site.issue("ca", &[&name, "--role", "node", "--host", &host]);
            lab.site.configure(
                &format!("{name}.toml"),
                &format!(
                    "[node]\nname = '{name}'\ngrid = 'https://10.98.0.254:{SERVICE_PORT}'\n\
                     directory = 'DIR/{name}'\n\
                     listen = '10.98.0.{number}:{AGENT_PORT}'\nslots = 4\n{node}\n{}",
                    tls(&name)
                ),
            );
            lab.start(&name);
        }
        wait_until("all nodes are there", || {
            let listed = lab.site.json(&["nodes"]);
            listed["nodes"].as_array().unwrap().len() == nodes
        });
        lab
    }

    /// Starts the service.
    pub fn start_service(&mut self) {
        let mut command = self.service.command();
        let config = self.site.path("grid.toml");
        command
            .arg(self.site.path("cprd"))
            .args(["--config", config.to_str().unwrap(), "grid"]);
        self.site.start_command("grid", command);
    }

    /// A command on the host of the service.
    pub fn service_command(&self) -> Command {
        self.service.command()
    }

    fn number(name: &str) -> usize {
        name.trim_start_matches('n').parse().unwrap()
    }

    /// Starts a node's host, and its agent.
    pub fn start(&mut self, name: &str) {
        let number = Lab::number(name);
        let host = Host::new(name);
        let peer = format!("link add v{number} type veth peer name eth0 netns {}", host.init);
        self.service.ip(&peer);
        self.service.ip(&format!("link set v{number} master br0"));
        self.service.ip(&format!("link set v{number} up"));
        host.ip(&format!("addr add 10.98.0.{number}/24 dev eth0"));
        host.ip("link set eth0 up");
        self.nodes[number - 1] = Some(host);
        self.start_agent(name);
    }

    /// Starts the agent of a host that is there.
    pub fn start_agent(&mut self, name: &str) {
        let mut command = self.node_command(name);
        let config = self.site.path(&format!("{name}.toml"));
        command
            .arg(self.site.path("cprd"))
            .args(["--config", config.to_str().unwrap(), "node"])
            .env("GRIDCPR_CONFIG_DIRS", self.engines_of(name));
        self.site.start_command(name, command);
    }

    /// A command on a node's host.
    pub fn node_command(&self, name: &str) -> Command {
        self.nodes[Lab::number(name) - 1].as_ref().unwrap().command()
    }

    /// `cpr` of the user, over the network, with the certificate of that name.
    pub fn cpr_on(&self, name: &str, certificate: &str, arguments: &[&str]) -> Command {
        let mut command = self.user_on(name, certificate, &self.site.path("cpr"));
        command.args(arguments);
        command
    }

    /// A program of the user, which reaches the grid over the network, with the certificate of that name.
    pub fn user_on(&self, name: &str, certificate: &str, program: &std::path::Path) -> Command {
        let mut command = self.node_command(name);
        command.args(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]);
        // Users have no way into the directory of the CA.
        let issued_ca = self.site.path("ca-issued/ca.pem");
        if !issued_ca.exists() {
            fs::copy(self.site.path("ca/ca.pem"), &issued_ca).unwrap();
        }
        let issued = |end: &str| self.site.path(&format!("ca-issued/{certificate}.{end}"));
        command
            .arg(program)
            .current_dir(self.site.path("work"))
            .env("GRIDCPR_GRID", format!("https://10.98.0.254:{SERVICE_PORT}"))
            .env("GRIDCPR_CA", issued_ca)
            .env("GRIDCPR_CERTIFICATE", issued("pem"))
            .env("GRIDCPR_KEY", issued("key"));
        command
    }

    /// Writes down everything that goes through the network from now on, until it is dropped.
    pub fn tap(&self) -> Tap {
        let file = self.site.path("tapped");
        let mut command = self.service.command();
        command.args(["python3", "-c", TAP]).arg(&file);
        let child = command.stdout(Stdio::null()).spawn().unwrap();
        wait_until("the network is listened to", || file.exists());
        Tap { child, file }
    }

    /// Where a node finds engines and classes besides those compiled in; there need not be any.
    pub fn engines_of(&self, name: &str) -> std::path::PathBuf {
        self.site.path(&format!("{name}-engines"))
    }

    /// Everything on the host ends at once, and its network is gone.
    pub fn crash(&mut self, name: &str) {
        drop(self.nodes[Lab::number(name) - 1].take());
        self.site.kill(name);
    }

    /// Nothing reaches the host or comes from it any more.
    pub fn cut(&self, name: &str) {
        self.service.ip(&format!("link set v{} down", Lab::number(name)));
    }

    /// The opposite.
    pub fn rejoin(&self, name: &str) {
        self.service.ip(&format!("link set v{} up", Lab::number(name)));
    }

    /// State of a node.
    pub fn node_state(&self, name: &str) -> String {
        let nodes = self.site.json(&["nodes"]);
        let mut nodes = nodes["nodes"].as_array().unwrap().iter();
        let node = nodes.find(|node| node["info"]["name"] == name).unwrap();
        node["state"].as_str().unwrap().to_string()
    }

    /// Whether a program that counts runs on a node: not the processes that look after it.
    pub fn counts_on(&self, name: &str) -> bool {
        let Some(host) = &self.nodes[Lab::number(name) - 1] else {
            return false;
        };
        // A job has a PID namespace of its own, and the network of its host.
        let network = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        let there = network(&host.init);
        let is_job = |pid: i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.starts_with(b"sh\0-c\0i=0") && network(&pid.to_string()) == there
        };
        self.site.job_processes().into_iter().any(is_job)
    }

    /// The other nodes' names.
    pub fn others(&self, name: &str) -> Vec<String> {
        let all = (1..=self.nodes.len()).map(|number| format!("n{number}"));
        all.filter(|other| other != name).collect()
    }
}
