//! The configuration file: what can be set, what it is where nothing is set, and what makes no sense.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cpr_api::Endpoint;
use cpr_api::tls::Files;
use cpr_grid::Policy;
use cpr_types::{Context, Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use crate::outside;
use crate::server::Limits;

/// The lowest number that people have as users (login.defs(5), `UID_MIN`); those below are of programs.
const FIRST_PERSON: u32 = 1000;

/// Where the configuration is looked for by root.
const DEFAULT_FILE: &str = "/etc/gridcpr/cprd.toml";

/// `cprd.toml`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The service.
    pub grid: GridConfig,
    /// The agent of a node.
    pub node: NodeConfig,
    /// Who is believed on the network.
    pub tls: TlsConfig,
    /// What callers are granted.
    pub limits: LimitsConfig,
    /// The S3 service, where the store is a bucket.
    pub s3: S3Config,
    /// How often images are compared with their hashes though nobody reads them.
    pub verify: VerifyConfig,
    /// How images in the store are encrypted.
    pub encryption: EncryptionConfig,
    /// What is run on a node around jobs and after checkpoints.
    pub hooks: HooksConfig,
    /// What finds out whether something is wrong with a node.
    pub detector: DetectorConfig,
    /// Who is told of what happens.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub webhook: Vec<WebhookConfig>,
}

/// `[encryption]`: where the keys come from, one in each line; the first encrypts, the others are for older images.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EncryptionConfig {
    /// File with the keys.
    pub key_file: Option<PathBuf>,
    /// Variable of the environment with the keys.
    pub key_variable: Option<String>,
    /// Program, and its arguments, that prints the keys.
    pub key_command: Vec<String>,
}

impl EncryptionConfig {
    /// Whether there are keys.
    pub fn is_used(&self) -> bool {
        self.key_file.is_some() || self.key_variable.is_some() || !self.key_command.is_empty()
    }
}

/// `[detector]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DetectorConfig {
    /// Program, and its arguments, that ends with another exit code than 0 where something is wrong with the node, and
    /// says what in the last line that it prints.
    pub command: Vec<String>,
    /// It is run after so long again, seconds.
    pub every_s: u64,
    /// It is killed after so long, seconds, which counts as a fault.
    pub limit_s: u64,
}

impl Default for DetectorConfig {
    fn default() -> Self {
        DetectorConfig {
            command: Vec::new(),
            every_s: 30,
            limit_s: 10,
        }
    }
}

/// `[hooks]`: programs with their arguments.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HooksConfig {
    /// Run before each start of a job, which does not start here where it fails.
    pub before_job: Vec<String>,
    /// Run when a job has ended on the node, however it did.
    pub after_job: Vec<String>,
    /// Run when a checkpoint is on the disk of the node.
    pub after_checkpoint: Vec<String>,
    /// Each is killed after so long, seconds.
    pub limit_s: u64,
}

impl Default for HooksConfig {
    fn default() -> Self {
        HooksConfig {
            before_job: Vec::new(),
            after_job: Vec::new(),
            after_checkpoint: Vec::new(),
            limit_s: 60,
        }
    }
}

/// `[[webhook]]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhookConfig {
    /// Where events are posted to.
    pub url: String,
    /// File with the secret that they are signed with.
    pub secret_file: PathBuf,
    /// Only events of these kinds, as `job.failed`, or of all that begin so, as `node`; all where nothing is said.
    #[serde(default)]
    pub kinds: Vec<String>,
    /// Certificates of the CAs that are believed; those of the system where nothing is said.
    #[serde(default)]
    pub ca: Option<PathBuf>,
}

/// `[tls]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsConfig {
    /// Certificates of the CAs that are believed.
    pub ca: Option<PathBuf>,
    /// Certificate of this daemon.
    pub certificate: Option<PathBuf>,
    /// Its private key.
    pub key: Option<PathBuf>,
    /// Lists of revoked certificates, of every CA.
    pub revoked: Option<PathBuf>,
    /// Without certificates, addresses of a network may be used all the same: tokens and images can be read on it.
    pub allow_plain_http: bool,
}

/// `[verify]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VerifyConfig {
    /// Each image is read again after so long; 0: never.
    pub every_s: u64,
    /// Not faster than this, MiB a second.
    pub mb_per_s: u64,
}

impl Default for VerifyConfig {
    fn default() -> Self {
        VerifyConfig {
            every_s: 7 * 24 * 3600,
            mb_per_s: 20,
        }
    }
}

/// `[s3]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct S3Config {
    /// `https://HOST` or `https://HOST:PORT`.
    pub endpoint: String,
    /// Region.
    pub region: String,
    /// File with the access key in its first line and the secret key in its second.
    pub key_file: Option<PathBuf>,
    /// Certificates of the CAs that are believed; those of the system where nothing is said.
    pub ca: Option<PathBuf>,
}

impl Default for S3Config {
    fn default() -> Self {
        S3Config {
            endpoint: "https://s3.amazonaws.com".to_string(),
            region: "us-east-1".to_string(),
            key_file: None,
            ca: None,
        }
    }
}

/// `[limits]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Connections at once, at each address.
    pub connections: usize,
    /// Connections at once of one host, or of one user of this machine.
    pub connections_per_peer: usize,
    /// How long the head of a request, or its body, may take, and how long a connection may be idle.
    pub patience_ms: u64,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        LimitsConfig {
            connections: 1024,
            connections_per_peer: 128,
            patience_ms: 15_000,
        }
    }
}

impl LimitsConfig {
    /// What the server goes by.
    pub fn limits(&self) -> Limits {
        Limits {
            connections: self.connections,
            connections_per_peer: self.connections_per_peer,
            patience: Duration::from_millis(self.patience_ms),
        }
    }
}

impl TlsConfig {
    /// The files for TLS; none where it is not used.
    pub fn files(&self) -> Option<Files> {
        let ca = self.ca.clone()?;
        Some(Files {
            ca,
            own: self.certificate.clone().zip(self.key.clone()),
            revoked: self.revoked.clone(),
        })
    }
}

/// `[grid]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GridConfig {
    /// What the service keeps, apart from a database elsewhere.
    pub directory: PathBuf,
    /// `sqlite:///PATH` or `postgres://…`; a SQLite database below `directory` where nothing is said.
    pub database: Option<String>,
    /// Socket for users of this machine, who are known by their credentials.
    pub socket: PathBuf,
    /// Addresses for everybody else, who are known by certificates or tokens.
    pub listen: Vec<SocketAddr>,
    /// Who has which token.
    pub tokens: PathBuf,
    /// Login names of operators.
    pub operators: Vec<String>,
    /// A node that is not heard of for so long is lost.
    pub lease_ms: u64,
    /// A node gives up so much earlier than the service does.
    pub margin_ms: u64,
    /// Nodes that are to hold each image where there is no common store.
    pub copies: usize,
    /// What the checkpoints of one user may take, MiB; as much as there is where nothing is said.
    pub quota_mb: Option<u64>,
    /// The same for users for whom something else holds.
    pub quotas_mb: BTreeMap<String, u64>,
    /// Records of checkpoints that are gone are kept for so many days when their job has finished; for ever where
    /// nothing is said.
    pub keep_records_days: Option<u32>,
    /// Jobs of lower priority make room: they are saved, and queued again.
    pub preempt: bool,
    /// Jobs that have run for so many seconds make room for others of the same priority, and are queued again; none:
    /// never.
    pub slice_s: Option<u64>,
    /// Checkpoints of jobs of several units are given up where all units have not got ready, stopped or emptied their
    /// connections in so many seconds.
    pub step_s: u64,
    /// The same where not all are saved, and their images hashed.
    pub save_s: u64,
    /// The store that nodes share, as this machine sees it: images that nobody needs are removed from it.
    pub store: Option<String>,
}

/// `[node]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeConfig {
    /// Name, as no other node has it; the host name where nothing is said.
    pub name: Option<String>,
    /// Where the service is: `https://HOST:PORT`, `http://HOST:PORT` or `unix:/PATH`.
    pub grid: String,
    /// File with the token of this node.
    pub token_file: Option<PathBuf>,
    /// What the agent keeps: jobs and images.
    pub directory: PathBuf,
    /// Address at which other nodes fetch images.
    pub listen: Option<SocketAddr>,
    /// The same as others see it, as `HOST:PORT`; `listen` where nothing is said.
    pub advertise: Option<String>,
    /// A directory or bucket that all nodes share, for images.
    pub store: Option<String>,
    /// A directory or bucket for files of users, which are staged in from there and out to it.
    pub area: Option<String>,
    /// Images are fetched, and put into the store, not faster than this in all, MiB a second; as fast as it goes where
    /// nothing is said.
    pub transfer_mb_per_s: Option<u64>,
    /// Jobs at once, in slots; the number of processors where nothing is said.
    pub slots: Option<u32>,
    /// Memory for jobs, MiB; that of the machine where nothing is said.
    pub memory_mb: Option<u64>,
    /// More that jobs can ask for.
    pub properties: BTreeMap<String, String>,
    /// Program, and its arguments, that has the site's resource manager run jobs; the agent starts them itself where
    /// nothing is said.
    pub manager: Vec<String>,
    /// How long a job may wait for the manager to start it, until it is tried elsewhere.
    pub manager_wait_s: u64,
    /// The `cpr` that runs jobs; the one beside `cprd`, or else on PATH, where nothing is said.
    pub cpr: Option<PathBuf>,
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A directory of the system for root, else of the user: below `$variable` where that is set, or else at `~/home`.
fn base(system: &str, variable: &str, home: &str) -> PathBuf {
    let absolute = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    if is_root() {
        PathBuf::from(system)
    } else if let Some(path) = absolute(variable) {
        path.join("gridcpr")
    } else {
        absolute("HOME").unwrap_or_else(|| "/".into()).join(home)
    }
}

fn state_directory() -> PathBuf {
    base("/var/lib/cprd", "XDG_STATE_HOME", ".local/state/gridcpr")
}

/// Where our own configuration and secrets are.
fn configuration_directory() -> PathBuf {
    base("/etc/gridcpr", "XDG_CONFIG_HOME", ".config/gridcpr")
}

/// Where the CA is, unless somebody says something else.
pub fn ca_directory() -> PathBuf {
    configuration_directory().join("ca")
}

impl Default for GridConfig {
    fn default() -> Self {
        let policy = Policy::default();
        GridConfig {
            directory: state_directory().join("grid"),
            database: None,
            socket: base("/run/gridcpr", "XDG_RUNTIME_DIR", ".local/state/gridcpr").join("cprd.sock"),
            listen: Vec::new(),
            tokens: configuration_directory().join("tokens"),
            operators: Vec::new(),
            lease_ms: policy.lease_ms,
            margin_ms: policy.margin_ms,
            copies: policy.copies,
            quota_mb: None,
            quotas_mb: BTreeMap::new(),
            keep_records_days: None,
            preempt: policy.preempt,
            slice_s: None,
            step_s: policy.step_ms / 1000,
            save_s: policy.save_ms / 1000,
            store: None,
        }
    }
}

impl Default for NodeConfig {
    fn default() -> Self {
        NodeConfig {
            name: None,
            grid: format!("unix:{}", GridConfig::default().socket.display()),
            token_file: None,
            directory: state_directory().join("node"),
            listen: None,
            advertise: None,
            store: None,
            area: None,
            transfer_mb_per_s: None,
            slots: None,
            memory_mb: None,
            properties: BTreeMap::new(),
            manager: Vec::new(),
            manager_wait_s: 300,
            cpr: None,
        }
    }
}

impl GridConfig {
    /// Address of the database.
    pub fn database(&self) -> String {
        let default = || format!("sqlite://{}", self.directory.join("grid.db").display());
        self.database.clone().unwrap_or_else(default)
    }

    /// What the service goes by.
    pub fn policy(&self) -> Policy {
        let of_user = |(user, quota): (&String, &u64)| (user.clone(), quota.saturating_mul(1 << 20));
        Policy {
            lease_ms: self.lease_ms,
            margin_ms: self.margin_ms,
            copies: self.copies,
            quota: self.quota_mb.map(|quota| quota.saturating_mul(1 << 20)),
            quotas: self.quotas_mb.iter().map(of_user).collect(),
            records_ms: self.keep_records_days.map(|days| i64::from(days) * 24 * 3600 * 1000),
            preempt: self.preempt,
            slice_ms: self.slice_s.map(|s| s.saturating_mul(1000)),
            is_user,
            step_ms: self.step_s.saturating_mul(1000),
            save_ms: self.save_s.saturating_mul(1000),
        }
    }
}

impl NodeConfig {
    /// Name of the node.
    pub fn name(&self) -> String {
        let host = || rustix::system::uname().nodename().to_string_lossy().into_owned();
        self.name.clone().unwrap_or_else(host)
    }

    /// Where others fetch images; empty where they cannot.
    pub fn address(&self) -> String {
        let listen = || self.listen.map(|address| address.to_string());
        self.advertise.clone().or_else(listen).unwrap_or_default()
    }
}

impl Config {
    /// Reads the configuration at `path`; where there is none, root's default file where it exists, or the defaults.
    pub fn load(path: Option<&Path>) -> Result<Config> {
        let path = match path {
            Some(path) => path,
            None if is_root() && Path::new(DEFAULT_FILE).exists() => Path::new(DEFAULT_FILE),
            None => return Ok(Config::default()),
        };
        let text = std::fs::read_to_string(path).context(|| format!("read configuration {}", path.display()))?;
        toml::from_str(&text).map_err(|error| {
            Error::new(
                ErrorKind::Usage,
                format!("configuration {} is not understood", path.display()),
            )
            .with_source(error)
        })
    }

    /// Refuses what makes no sense.
    pub fn check(&self) -> Result<()> {
        let refuse = |what: &str, hint: &str| {
            Err(Error::new(ErrorKind::Usage, format!("configuration: {what}")).with_hint(hint.to_string()))
        };
        let (grid, node) = (&self.grid, &self.node);
        // A heartbeat takes up to half a second; jobs need time to be killed.
        if grid.margin_ms < 500 || grid.lease_ms < grid.margin_ms.saturating_add(1500) {
            return refuse(
                "grid.lease_ms is too short for grid.margin_ms",
                "margin_ms has to be 500 at least, and lease_ms longer than it by 1500 at least",
            );
        }
        if grid.copies == 0 {
            return refuse("grid.copies is 0", "1 leaves images where they were made");
        }
        if grid.slice_s == Some(0) {
            return refuse(
                "grid.slice_s is 0",
                "no job would ever get further; without it none has to make room",
            );
        }
        if grid.step_s == 0 || grid.save_s == 0 {
            return refuse(
                "grid.step_s or grid.save_s is 0",
                "no unit could be saved; 60 and 900 are the defaults",
            );
        }
        let service = node.grid.parse::<Endpoint>()?;
        let tls = &self.tls;
        if tls.certificate.is_some() != tls.key.is_some() {
            return refuse("of tls.certificate and tls.key one is missing", "set both or none");
        }
        if tls.ca.is_none() && (tls.certificate.is_some() || tls.revoked.is_some()) {
            return refuse("tls.ca is missing", "name the file with the certificate of the CA");
        }
        if tls.ca.is_none() && matches!(service, Endpoint::Tls(_)) {
            return refuse("node.grid needs tls.ca", "name the file with the certificate of the CA");
        }
        let open = |address: &&SocketAddr| !address.ip().is_loopback();
        let listens = grid.listen.iter().chain(&node.listen);
        if tls.ca.is_some() && tls.certificate.is_none() && listens.clone().next().is_some() {
            return refuse(
                "whoever listens needs tls.certificate and tls.key",
                "`cprd ca issue` makes them",
            );
        }
        let plain = tls.ca.is_none() && listens.clone().any(|address| open(&address));
        if (plain || service.can_be_overheard()) && !tls.allow_plain_http {
            return refuse(
                "without TLS, tokens and images can be read on the network",
                "set tls.ca, tls.certificate and tls.key; or, on a network that only this grid's machines reach, \
                 tls.allow_plain_http = true",
            );
        }
        for store in [&grid.store, &node.store, &node.area].into_iter().flatten() {
            let bucket = store
                .strip_prefix("s3://")
                .is_some_and(|bucket| !bucket.starts_with('/') && !bucket.is_empty());
            if !bucket && !store.starts_with('/') {
                return refuse(
                    &format!("{store:?} is no store or area"),
                    "write a directory that begins with /, or s3://BUCKET or s3://BUCKET/PREFIX",
                );
            }
            let overheard = bucket && outside::endpoint(&outside::url(&self.s3.endpoint)?).can_be_overheard();
            if overheard && !tls.allow_plain_http {
                return refuse(
                    "s3.endpoint has no TLS",
                    "use https://; or, on a network that can be trusted, tls.allow_plain_http = true",
                );
            }
        }
        if node.area.is_some() && (node.area == node.store || node.area == grid.store) {
            return refuse(
                "node.area is the store of images",
                "give files of users a directory, or a prefix of the bucket, of their own",
            );
        }
        let keys = &self.encryption;
        let ways = [
            keys.key_file.is_some(),
            keys.key_variable.is_some(),
            !keys.key_command.is_empty(),
        ];
        if ways.into_iter().filter(|given| *given).count() > 1 {
            return refuse(
                "encryption has several sources of keys",
                "set one of encryption.key_file, key_variable and key_command",
            );
        }
        for hook in &self.webhook {
            let endpoint = outside::endpoint(&outside::url(&hook.url)?);
            if endpoint.can_be_overheard() && !tls.allow_plain_http {
                return refuse(
                    "webhook.url has no TLS",
                    "use https://; or, on a network that can be trusted, tls.allow_plain_http = true",
                );
            }
        }
        let limits = &self.limits;
        if limits.connections == 0 || limits.connections_per_peer == 0 || limits.patience_ms < 100 {
            return refuse("limits are too tight", "nobody could be answered");
        }
        if self.verify.mb_per_s == 0 {
            return refuse(
                "verify.mb_per_s is 0",
                "verify.every_s = 0 says that images are not to be looked at",
            );
        }
        for (name, path) in [("grid.directory", &grid.directory), ("node.directory", &node.directory)] {
            if !path.is_absolute() {
                return refuse(&format!("{name} is not absolute"), "write a path that begins with /");
            }
        }
        let hooks = &self.hooks;
        for (name, command) in [
            ("hooks.before_job", &hooks.before_job),
            ("hooks.after_job", &hooks.after_job),
            ("hooks.after_checkpoint", &hooks.after_checkpoint),
            ("detector.command", &self.detector.command),
            ("node.manager", &node.manager),
        ] {
            if command.first().is_some_and(|program| !program.starts_with('/')) {
                return refuse(
                    &format!("the program of {name} is not absolute"),
                    "write a path that begins with /",
                );
            }
        }
        if hooks.limit_s == 0 || self.detector.limit_s == 0 || self.detector.every_s == 0 {
            return refuse(
                "a time of hooks or detector is 0",
                "no command could end in time, or it would be run all the time",
            );
        }
        if node.transfer_mb_per_s == Some(0) {
            return refuse(
                "node.transfer_mb_per_s is 0",
                "images could not be moved; leave it out where there is no limit",
            );
        }
        if node.slots == Some(0) {
            return refuse(
                "node.slots is 0",
                "a node that takes no jobs is drained: `cpr drain NODE`",
            );
        }
        Ok(())
    }

    /// The configuration as a file, defaults included.
    pub fn to_text(&self) -> Result<String> {
        toml::to_string(self)
            .map_err(|error| Error::new(ErrorKind::Internal, "write the configuration").with_source(error))
    }
}

/// Makes a directory closed to others, where it is missing.
pub fn make_private(path: &Path) -> Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .context(|| format!("make directory {}", path.display()))
}

/// Whether this machine knows a person, or root, by this name.
fn is_user(name: &str) -> bool {
    let user = nix::unistd::User::from_name(name).ok().flatten();
    user.is_some_and(|user| user.uid.is_root() || user.uid.as_raw() >= FIRST_PERSON)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_what_is_read() {
        let config = Config::default();
        config.check().unwrap();
        assert_eq!(toml::from_str::<Config>(&config.to_text().unwrap()).unwrap(), config);
    }

    #[test]
    fn the_guide_has_good_examples_and_every_setting() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/operations.md");
        let guide = std::fs::read_to_string(path).unwrap();
        let mut examples = 0;
        for block in guide.split("```toml\n").skip(1) {
            let text = block.split("```").next().unwrap();
            toml::from_str::<Config>(text).unwrap().check().unwrap();
            examples += 1;
        }
        assert!(examples >= 2);
        // Settings without a value are not shown, so that they get one.
        let mut config = Config::default();
        let path = Some(PathBuf::from("/x"));
        config.grid.database = Some("sqlite:///x".into());
        let store = Some("/x".to_string());
        config.grid.store = store.clone();
        config.grid.quota_mb = Some(1);
        config.encryption.key_file = path.clone();
        config.encryption.key_variable = Some("X".into());
        config.webhook = vec![WebhookConfig {
            url: "https://x".into(),
            secret_file: "/x".into(),
            kinds: Vec::new(),
            ca: path.clone(),
        }];
        config.s3.key_file = path.clone();
        config.s3.ca = path.clone();
        config.tls = TlsConfig {
            ca: path.clone(),
            certificate: path.clone(),
            key: path.clone(),
            revoked: path.clone(),
            allow_plain_http: false,
        };
        config.node = NodeConfig {
            name: Some("x".into()),
            token_file: path.clone(),
            listen: "127.0.0.1:1".parse().ok(),
            advertise: Some("x:1".into()),
            store,
            area: Some("/files".into()),
            transfer_mb_per_s: Some(1),
            slots: Some(1),
            memory_mb: Some(1),
            cpr: path,
            ..config.node
        };
        let table: toml::Table = config.to_text().unwrap().parse().unwrap();
        for (part, settings) in &table {
            // Of those that may be given several times, one is looked at.
            let (part, settings) = match settings.as_array().and_then(|all| all.first()) {
                Some(first) => (format!("[{part}]"), first),
                None => (part.clone(), settings),
            };
            let (_, rows) = guide.split_once(&format!("| `[{part}]` |")).unwrap();
            let rows = rows.split("\n\n").next().unwrap();
            for name in settings.as_table().unwrap().keys() {
                assert!(
                    rows.lines().any(|row| row
                        .split(" | ")
                        .next()
                        .is_some_and(|cell| cell.contains(&format!("`{name}`")))),
                    "[{part}] {name} is not described"
                );
            }
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let check = |text: &str| {
            let read = toml::from_str::<Config>(text).map_err(|error| error.to_string());
            read.and_then(|config| config.check().map_err(|error| error.chain()))
        };
        for good in [
            "[grid]\nlease_ms = 3000\nmargin_ms = 1000",
            "[grid]\nlisten = [\"127.0.0.1:1\", \"[::1]:1\"]",
            "[grid]\nlisten = [\"10.0.0.1:1\"]\n[tls]\nallow_plain_http = true",
            "[grid]\nlisten = [\"10.0.0.1:1\"]\n[tls]\nca = \"/x\"\ncertificate = \"/x\"\nkey = \"/x\"",
            "[node]\ngrid = \"https://10.0.0.1:1\"\n[tls]\nca = \"/x\"",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for bad in [
            "[grid]\nlaese_ms = 3000",
            "[grid]\nlease_ms = 3000\nmargin_ms = 3000",
            "[grid]\nlisten = [\"nowhere\"]",
            "[grid]\ncopies = 0",
            "[node]\ngrid = \"ftp://x\"",
            "[node]\ndirectory = \"here\"",
            "[node]\nslots = 0",
            "[grid]\nlisten = [\"10.0.0.1:1\"]",
            "[node]\nlisten = \"0.0.0.0:1\"",
            "[node]\ngrid = \"http://10.0.0.1:1\"",
            "[node]\ngrid = \"https://10.0.0.1:1\"",
            "[tls]\nca = \"/x\"\ncertificate = \"/x\"",
            "[tls]\nrevoked = \"/x\"",
            "[tls]\nca = \"/x\"\n[grid]\nlisten = [\"127.0.0.1:1\"]",
            "[limits]\nconnections = 0",
            "[verify]\nmb_per_s = 0",
            "[node]\ntransfer_mb_per_s = 0",
            "[grid]\nstore = \"here\"",
            "[encryption]\nkey_file = \"/x\"\nkey_command = [\"x\"]",
            "[[webhook]]\nurl = \"https://x\"",
            "[[webhook]]\nurl = \"ftp://x\"\nsecret_file = \"/x\"",
            "[[webhook]]\nurl = \"http://10.0.0.1/x\"\nsecret_file = \"/x\"",
            "[node]\nstore = \"s3://\"",
            "[node]\nstore = \"s3://x\"\n[s3]\nendpoint = \"http://10.0.0.1\"",
            "x",
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
