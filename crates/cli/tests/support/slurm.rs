//! A Slurm cluster on this machine: every node has a network, a PID and a mount namespace of its own, and where that can
//! be had a control group, as on a host of its own. They share the file system.

#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "each test program uses its own part of this module"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take: machines are slow and shared.
const PATIENCE: Duration = Duration::from_secs(90);
/// Where the hierarchy is mounted by which Slurm finds and signals the tasks of a job.
const FREEZER: &str = "/sys/fs/cgroup/freezer";
/// Each node has its own.
const RUN: &str = "/run/slurm-test";

#[track_caller]
fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What is missing for a cluster; none where nothing is.
pub fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("a cluster in namespaces: only root can make it".to_string());
    }
    let path = std::env::var("PATH").unwrap_or_default();
    let mut places: Vec<&str> = path.split(':').collect();
    places.extend(["/usr/sbin", "/sbin"]);
    let is_there = |program: &&str| places.iter().any(|place| Path::new(place).join(program).exists());
    let program = ["munged", "slurmctld", "slurmd", "sbatch"]
        .into_iter()
        .find(|program| !is_there(program));
    program.map(|program| format!("{program} not found"))
}

/// Whether nodes have control groups: without, Slurm signals all processes of a job rather than its tasks.
pub fn has_groups() -> bool {
    Path::new(FREEZER).join("cgroup.procs").exists()
}

/// Builds the plug-in below this directory; what is in the way where that cannot be done.
pub fn build_plugin(directory: &Path) -> Result<PathBuf, String> {
    if !Path::new("/usr/include/slurm/spank.h").exists() {
        return Err("Slurm's headers not found (libslurm-dev)".to_string());
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../integrations/slurm");
    let to = directory.join("plugin");
    for part in ["", "build"] {
        fs::create_dir(to.join(part)).unwrap();
    }
    let build = Command::new("make")
        .args(["-C", source.to_str().unwrap(), "install"])
        .arg(format!("BUILD={}", to.join("build").display()))
        .arg(format!("PREFIX={}", to.display()))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(build.status.success(), "{}", String::from_utf8_lossy(&build.stderr));
    Ok(to)
}

/// A node. When it is dropped, everything that runs on it dies.
struct Node {
    unshare: Child,
    init: String,
    group: Option<PathBuf>,
}

impl Node {
    fn new(name: &str, directory: &Path) -> Node {
        let group = has_groups().then(|| {
            let group = Path::new(FREEZER).join(format!("slurm-test-{}-{name}", std::process::id()));
            fs::create_dir(&group).unwrap();
            group
        });
        // The shell is the first process: it reaps, and with it all others end.
        let mut first = format!("set -e; hostname {name}; mount -t tmpfs run /run; mkdir {RUN}; ip link set lo up\n");
        let mut namespaces = vec!["--net", "--uts", "--pid", "--fork", "--mount", "--mount-proc"];
        let mut enter = String::new();
        if let Some(group) = &group {
            // As seen from the node, its group is the highest one.
            first += &format!("umount {FREEZER}; mount -t cgroup -o freezer freezer {FREEZER}\n");
            namespaces.push("--cgroup");
            enter = format!("echo $$ >{}/cgroup.procs; ", group.display());
        }
        let up = directory.join(format!("up-{name}"));
        first += &format!("echo up >{}; while :; do sleep 1; done", up.display());
        let log = fs::File::create(directory.join(format!("log-{name}"))).unwrap();
        let unshare = Command::new("sh")
            .args(["-ec", &format!("{enter}exec unshare \"$@\""), "sh", "--kill-child=KILL"])
            .args(namespaces)
            .args(["sh", "-c", &first])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        wait_until("a node is up", || up.exists());
        let path = format!("/proc/{0}/task/{0}/children", unshare.id());
        let init = fs::read_to_string(path).unwrap().trim().to_string();
        Node { unshare, init, group }
    }

    /// A command on it.
    fn command(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.init, "--net", "--uts", "--pid", "--mount", "--cgroup"]);
        command.stdin(Stdio::null());
        command
    }

    /// Runs `ip` in its network, with our view of processes.
    #[track_caller]
    fn ip(&self, arguments: &str) {
        let output = Command::new("nsenter")
            .args(["-t", &self.init, "--net", "--", "ip"])
            .args(arguments.split_whitespace())
            .output()
            .unwrap();
        assert!(output.status.success(), "ip {arguments}: {output:?}");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
        wait_until("a node is down", || {
            !fs::exists(format!("/proc/{}", self.init)).unwrap_or(true)
        });
        if let Some(group) = &self.group {
            // Innermost first; until the kernel has let the last process go.
            wait_until("its groups are gone", || {
                let mut all = vec![group.clone()];
                let mut at = 0;
                while let Some(next) = all.get(at) {
                    let below = fs::read_dir(next).into_iter().flatten().flatten();
                    let below: Vec<PathBuf> = below.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
                    all.extend(below);
                    at += 1;
                }
                for group in all.iter().rev() {
                    let _ = fs::remove_dir(group);
                }
                !group.exists()
            });
        }
    }
}

/// The cluster. Its nodes are `n1` and so on, the controller runs on the first one.
pub struct Cluster {
    nodes: Vec<Node>,
    directory: PathBuf,
    uid: u32,
}

impl Cluster {
    /// Makes one in this directory, of nodes with so many processors, for jobs of this user; `more` is added to
    /// `slurm.conf`, and has partitions.
    pub fn new(directory: &Path, uid: u32, nodes: usize, cpus: u32, more: &str) -> Cluster {
        fs::create_dir_all(directory.join("state")).unwrap();
        let at = directory.display();
        let track = if has_groups() { "cgroup" } else { "linuxproc" };
        let all: String = (1..=nodes)
            .map(|number| format!("NodeName=n{number} NodeAddr=10.96.0.{number} CPUs={cpus} State=UNKNOWN\n"))
            .collect();
        // Read anew by everything that is started.
        fs::write(directory.join("plugstack.conf"), "").unwrap();
        let configuration = format!(
            "ClusterName=test\nSlurmctldHost=n1(10.96.0.1)\nSlurmUser=root\nAuthType=auth/munge\n\
             AuthInfo=socket={RUN}/munge.sock,cred_expire=5\nStateSaveLocation={at}/state\n\
             SlurmdSpoolDir={at}/spool-%n\nSlurmctldPidFile={RUN}/slurmctld.pid\nSlurmdPidFile={RUN}/slurmd.pid\n\
             SlurmctldLogFile={at}/slurmctld.log\nSlurmdLogFile={at}/slurmd-%n.log\n\
             ProctrackType=proctrack/{track}\nTaskPlugin=task/none\nSelectType=select/cons_tres\n\
             SelectTypeParameters=CR_Core\nMailProg=/bin/true\nJobRequeue=1\nPreemptType=preempt/partition_prio\n\
             PreemptMode=REQUEUE\nSchedulerParameters=sched_interval=2,bf_interval=2\n\
             SlurmdParameters=config_overrides\nPlugStackConfig={at}/plugstack.conf\n{all}{more}\n"
        );
        fs::write(directory.join("slurm.conf"), configuration).unwrap();
        let groups = "CgroupPlugin=cgroup/v1\nCgroupMountpoint=/sys/fs/cgroup\n";
        fs::write(directory.join("cgroup.conf"), groups).unwrap();
        let names: Vec<String> = (1..=nodes).map(|number| format!("n{number}")).collect();
        let cluster = Cluster {
            nodes: names.iter().map(|name| Node::new(name, directory)).collect(),
            directory: directory.to_path_buf(),
            uid,
        };
        cluster.nodes[0].ip("link add br0 type bridge");
        cluster.nodes[0].ip("link set br0 up");
        cluster.nodes[0].ip("addr add 10.96.0.1/24 dev br0");
        for (node, number) in cluster.nodes.iter().zip(1..).skip(1) {
            cluster.nodes[0].ip(&format!(
                "link add v{number} type veth peer name eth0 netns {}",
                node.init
            ));
            cluster.nodes[0].ip(&format!("link set v{number} master br0"));
            cluster.nodes[0].ip(&format!("link set v{number} up"));
            node.ip(&format!("addr add 10.96.0.{number}/24 dev eth0"));
            node.ip("link set eth0 up");
        }
        cluster.root(
            1,
            &format!("head -c 1024 /dev/urandom >{at}/munge.key; chmod 400 {at}/munge.key"),
        );
        for (number, name) in names.iter().enumerate() {
            let controller = if number == 0 { "slurmctld; " } else { "" };
            cluster.root(
                number + 1,
                &format!(
                    "munged --force --key-file={at}/munge.key --socket={RUN}/munge.sock --pid-file={RUN}/munge.pid \
                     --log-file={RUN}/munge.log --seed-file={RUN}/munge.seed >>{at}/log-{name} 2>&1; \
                     {controller}slurmd -N {name}"
                ),
            );
        }
        wait_until("the cluster is up", || {
            let shown = cluster.text(&["sinfo", "-h", "-N", "-o", "%N %T"]);
            names.iter().all(|name| shown.contains(&format!("{name} idle")))
        });
        cluster
    }

    /// Runs a command of the shell as root on a node; they are counted from 1.
    #[track_caller]
    pub fn root(&self, node: usize, script: &str) {
        let mut command = self.nodes[node - 1].command();
        command
            .args(["--", "sh", "-ec", script])
            .env("SLURM_CONF", self.directory.join("slurm.conf"))
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        // Not to be waited for: a daemon may keep them.
        let log = fs::File::options()
            .append(true)
            .create(true)
            .open(self.directory.join("log"))
            .unwrap();
        let status = command.stdout(log.try_clone().unwrap()).stderr(log).status().unwrap();
        let said = || fs::read_to_string(self.directory.join("log")).unwrap_or_default();
        assert!(status.success(), "{script}: {status}: {}", said());
    }

    /// A command on a node that is as the user's; the program is to be added.
    pub fn command(&self, node: usize, directory: &Path) -> Command {
        let mut command = self.nodes[node - 1].command();
        command
            .arg(format!("--wd={}", directory.display()))
            .args(["--", "setpriv"])
            .args([format!("--reuid={}", self.uid), format!("--regid={}", self.uid)])
            .args(["--clear-groups", "--"])
            .env("SLURM_CONF", self.directory.join("slurm.conf"));
        command
    }

    /// What enters a node as root, as the first words of a command line.
    pub fn entry(&self, node: usize) -> Vec<String> {
        let command = self.nodes[node - 1].command();
        let mut words = vec!["nsenter".to_string()];
        words.extend(command.get_args().map(|word| word.to_str().unwrap().to_string()));
        let configuration = self.directory.join("slurm.conf");
        words.extend([
            "--".into(),
            "env".into(),
            format!("SLURM_CONF={}", configuration.display()),
        ]);
        words
    }

    /// Runs a command of the user on the first node, where this directory is the present one.
    pub fn run(&self, directory: &Path, words: &[&str]) -> Output {
        self.command(1, directory).args(words).output().unwrap()
    }

    /// What a command prints that must succeed.
    #[track_caller]
    pub fn good(&self, directory: &Path, words: &[&str]) -> String {
        let output = self.run(directory, words);
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_string()
    }

    /// What a command of the user prints, whether it succeeds or not.
    pub fn text(&self, words: &[&str]) -> String {
        String::from_utf8_lossy(&self.run(Path::new("/"), words).stdout)
            .trim()
            .to_string()
    }

    /// What `scontrol show job` says under this name.
    pub fn of_job(&self, id: &str, name: &str) -> String {
        let shown = self.text(&["scontrol", "show", "job", id]);
        let name = format!("{name}=");
        let found = shown
            .split_whitespace()
            .find_map(|word| word.strip_prefix(name.as_str()));
        found.unwrap_or_default().to_string()
    }
}
