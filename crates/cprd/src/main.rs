//! `cprd`: the service of a grid, the agent of a node, or both.
//!
//! It reads its configuration and starts what that says. Whatever it holds in memory can be had again: it may be killed
//! at any instant.

mod agent;
mod ca;
mod check;
mod config;
mod durable;
mod files;
mod http;
mod outside;
mod reload;
mod server;
mod stores;
mod tls;
mod tokens;
mod webhooks;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, Subcommand};
use cpr_api::{Client, Endpoint};
use cpr_grid::{Clock, Db, Grid, Role};
use cpr_types::{Context, Error, ErrorKind, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::agent::Agent;
use crate::config::Config;
use crate::stores::Store;

/// How often the service looks for what is due, apart from after every change.
const TICK: Duration = Duration::from_millis(250);

/// The service of a grid, and the agents of its nodes
#[derive(Debug, Parser)]
#[command(name = "cprd", version, disable_help_subcommand = true)]
struct Cli {
    /// Configuration file
    #[arg(long, global = true, value_name = "FILE", env = "GRIDCPR_CONFIG")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the service and the agent of this machine; needs no configuration
    All,
    /// Run the service
    Grid,
    /// Run the agent of this machine
    Node,
    /// Look at the configuration
    Config {
        #[command(subcommand)]
        verb: ConfigVerb,
    },
    /// Make a token with which somebody, or a node, reaches the service over TCP
    Token {
        /// Login name, or name of the node
        name: String,
        /// What it is good for: user, operator, admin or node
        #[arg(long, default_value = "user", value_parser = tokens::parse_role)]
        role: Role,
    },
    /// Run a certificate authority for the grid
    Ca {
        /// Directory of the CA
        #[arg(long, value_name = "DIR", default_value_os_t = config::ca_directory())]
        dir: PathBuf,
        #[command(subcommand)]
        verb: CaVerb,
    },
    /// Find out whether everything that a grid consists of is there, as this machine sees it
    Check,
    /// Print the OpenAPI description of the interface
    Openapi,
    /// Print the JSON schema of what a grid knows of a checkpoint
    Schema,
    /// Become the program that standard input describes
    #[command(hide = true)]
    Become,
    /// Copy one file
    #[command(hide = true)]
    CopyFile {
        /// What to copy, as JSON
        what: String,
    },
}

#[derive(Debug, Subcommand)]
enum ConfigVerb {
    /// Find out whether the configuration is good
    Check,
    /// Print the configuration with all defaults
    Show,
}

#[derive(Debug, Subcommand)]
enum CaVerb {
    /// Make the CA: ca.pem is its certificate, ca.key its key, revoked.pem its list of revoked certificates
    Init,
    /// Issue a certificate and its key, as NAME.pem and NAME.key
    Issue {
        /// Login name, or name of the node
        name: String,
        /// What it is good for: service, node, user, operator or admin
        #[arg(long, default_value = "user", value_parser = ca::parse_purpose)]
        role: ca::Purpose,
        /// Where the service or node can be reached: an address or a host name; may be given several times
        #[arg(long = "host", value_name = "HOST")]
        hosts: Vec<String>,
        /// How long it is good: a number with s, m, h or d
        #[arg(long, value_name = "DURATION", default_value = "365d", value_parser = parse_duration)]
        valid: Duration,
        /// Directory to write both into
        #[arg(long, value_name = "DIR", default_value = ".")]
        to: PathBuf,
    },
    /// Revoke all certificates of a name; revoked.pem has to go to all machines of the grid then
    Revoke {
        /// Login name, or name of the node
        name: String,
    },
}

/// A number of seconds, minutes, hours or days, as `90d`.
fn parse_duration(text: &str) -> std::result::Result<Duration, String> {
    let unit = text.chars().last().and_then(|unit| match unit {
        's' => Some(1),
        'm' => Some(60),
        'h' => Some(3600),
        'd' => Some(86_400),
        _ => None,
    });
    let number = unit.and_then(|_| text[..text.len() - 1].parse::<u32>().ok());
    match (number, unit) {
        (Some(number), Some(unit)) if number > 0 => Ok(Duration::from_secs(u64::from(number) * unit)),
        _ => Err(format!("{text:?} is not a duration such as 90d, 12h or 30s")),
    }
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(refusal) => {
            // Help is printed to standard output, refusals to standard error.
            let _ = refusal.print();
            let code = if refusal.use_stderr() {
                ErrorKind::Usage.exit_code()
            } else {
                0
            };
            return ExitCode::from(code);
        }
    };
    if let Verb::CopyFile { what } = &cli.verb {
        return ExitCode::from(files::run(what));
    }
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cprd: error: {}", error.chain());
            if let Some(hint) = error.hint() {
                eprintln!("hint: {hint}");
            }
            ExitCode::from(error.kind().exit_code())
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    if let Verb::Become = cli.verb {
        return Err(agent::become_described());
    }
    if let Verb::Openapi = cli.verb {
        println!("{}", http::openapi_json()?);
        return Ok(());
    }
    if let Verb::Schema = cli.verb {
        println!("{}", http::schema_json()?);
        return Ok(());
    }
    if let Verb::Ca { dir, verb } = cli.verb {
        return run_ca(&ca::Ca::at(&dir), verb);
    }
    let config = Config::load(cli.config.as_deref())?;
    match cli.verb {
        Verb::All => serve(cli.config.as_deref(), config, true, true),
        Verb::Grid => serve(cli.config.as_deref(), config, true, false),
        Verb::Node => serve(cli.config.as_deref(), config, false, true),
        Verb::Config {
            verb: ConfigVerb::Check,
        } => {
            config.check()?;
            println!("the configuration is good");
            Ok(())
        }
        Verb::Config { verb: ConfigVerb::Show } => {
            print!("{}", config.to_text()?);
            Ok(())
        }
        Verb::Token { name, role } => {
            println!("{}", tokens::issue(&config.grid.tokens, &name, role)?);
            Ok(())
        }
        Verb::Check => check::check(&config),
        Verb::Ca { .. } | Verb::Openapi | Verb::Schema | Verb::Become | Verb::CopyFile { .. } => Ok(()),
    }
}

fn run_ca(ca: &ca::Ca, verb: CaVerb) -> Result<()> {
    match verb {
        CaVerb::Init => ca.init(),
        CaVerb::Issue {
            name,
            role,
            hosts,
            valid,
            to,
        } => {
            let request = ca::Request {
                name,
                purpose: role,
                hosts,
                valid,
            };
            let (certificate, key) = ca.issue(&request, &to)?;
            println!("{}\n{}", certificate.display(), key.display());
            Ok(())
        }
        CaVerb::Revoke { name } => {
            println!("revoked: {}", ca.revoke(&name)?);
            Ok(())
        }
    }
}

/// Says something on standard error, where the system's journal reads it.
fn log(text: impl AsRef<str>) {
    let clean: String = text
        .as_ref()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    eprintln!("cprd: {clean}");
}

fn serve(path: Option<&Path>, config: Config, with_grid: bool, with_node: bool) -> Result<()> {
    config.check()?;
    let config = &config;
    let current = watch::Sender::new(Arc::new(config.clone()));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context(|| "start the runtime")?;
    runtime.block_on(async {
        let mut end = signal(SignalKind::terminate()).context(|| "watch for signals")?;
        let mut interrupt = signal(SignalKind::interrupt()).context(|| "watch for signals")?;
        let mut again = signal(SignalKind::hangup()).context(|| "watch for signals")?;
        let mut parts = tokio::task::JoinSet::new();
        if with_grid {
            let grid = Arc::new(open_grid(config).await?);
            http::start(&mut parts, config, current.subscribe(), grid.clone()).await?;
            if let Some(place) = &config.grid.store {
                let store = Arc::new(Store::open(place, config)?);
                parts.spawn(stores::clean::keep_clean(grid.clone(), store, current.subscribe()));
            }
            webhooks::start(&mut parts, &grid, &config.webhook)?;
            parts.spawn(follow_policy(grid.clone(), current.subscribe()));
            parts.spawn(keep_ticking(grid));
        }
        if with_node {
            let files = config.tls.files();
            let tls = files.map(tls::client).transpose()?.map(Arc::new);
            let client = grid_client(config, with_grid)?.with_tls(tls.clone());
            let agent = Agent::new(config, current.subscribe(), client, tls)?;
            agent::start(&mut parts, config, agent).await?;
        }
        log("ready");
        loop {
            tokio::select! {
                _ = end.recv() => return Ok(()),
                _ = interrupt.recv() => return Ok(()),
                _ = again.recv() => reload::reload(path, &current),
                ended = parts.join_next() => return match ended {
                    Some(Ok(result)) => result,
                    Some(Err(error)) => {
                        Err(Error::new(ErrorKind::Internal, "a part of cprd has come upon a defect").with_source(error))
                    }
                    None => Ok(()),
                },
            }
        }
    })?;
    // Requests that wait are dropped: everything that was acknowledged is durable.
    runtime.shutdown_background();
    Ok(())
}

async fn open_grid(config: &Config) -> Result<Grid> {
    config::make_private(&config.grid.directory)?;
    let db = Db::open(&config.grid.database()).await?;
    Grid::open(db, config.grid.policy(), Clock::system()).await
}

/// Has the grid go by the configuration as it is now, for ever.
async fn follow_policy(grid: Arc<Grid>, mut current: reload::Current) -> Result<()> {
    while current.changed().await.is_ok() {
        grid.set_policy(current.borrow_and_update().grid.policy());
    }
    Ok(())
}

/// Lets the grid do what is due, for ever.
async fn keep_ticking(grid: Arc<Grid>) -> Result<()> {
    let mut changes = grid.changes();
    let mut complaint = String::new();
    loop {
        match grid.tick().await {
            Ok(()) => complaint.clear(),
            // Another service has the database: this one must not go on.
            Err(error) if error.kind() == ErrorKind::Gone => return Err(error),
            Err(error) => {
                let text = error.chain();
                if text != complaint {
                    log(format!("looking after the grid: {text}"));
                }
                complaint = text;
                tokio::time::sleep(TICK).await;
            }
        }
        // Ends early where something has changed.
        let _ = tokio::time::timeout(TICK, changes.changed()).await;
    }
}

/// How the agent reaches the service.
pub(crate) fn grid_client(config: &Config, own: bool) -> Result<Client> {
    if own {
        return Ok(Client::new(Endpoint::Unix(config.grid.socket.clone()), None));
    }
    let endpoint: Endpoint = config.node.grid.parse()?;
    let token = config.node.token_file.as_deref().map(read_token).transpose()?;
    Ok(Client::new(endpoint, token))
}

fn read_token(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path).context(|| format!("read token {}", path.display()))?;
    Ok(text.trim().to_string())
}
