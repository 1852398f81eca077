//! Nodes and what they can do.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// State of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum NodeState {
    /// Its lease holds, and it takes jobs.
    Ready,
    /// Its lease holds; it takes no more jobs, and those it has go elsewhere.
    Draining,
    /// Its lease has lapsed.
    Lost,
}

impl NodeState {
    /// As it is written in the interface.
    pub const fn name(self) -> &'static str {
        match self {
            NodeState::Ready => "ready",
            NodeState::Draining => "draining",
            NodeState::Lost => "lost",
        }
    }
}

/// What a node says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct NodeInfo {
    /// Its name.
    pub name: String,
    /// Where other nodes fetch images, as `HOST:PORT`; empty where they cannot.
    #[serde(default)]
    pub address: String,
    /// Jobs it takes at once, counted in slots.
    pub slots: u32,
    /// Its memory, MiB.
    pub memory_mb: u64,
    /// It reaches the store that all nodes share.
    #[serde(default)]
    pub has_store: bool,
    /// The directory that images are below; empty where it does not tell.
    #[serde(default)]
    pub images: String,
    /// The URL of the store; empty where it reaches none.
    #[serde(default)]
    pub store: String,
    /// It can have units of jobs that have several, and does step by step what their coordinator says.
    #[serde(default)]
    pub has_units: bool,
    /// Engines that work on it, the preferred one first.
    #[serde(default)]
    pub engines: Vec<String>,
    /// Classes of engines, each with the names of those of its members that work.
    #[serde(default)]
    pub classes: BTreeMap<String, Vec<String>>,
    /// What each of the engines can do.
    #[serde(default)]
    pub abilities: BTreeMap<String, Abilities>,
    /// Anything more that jobs can ask for: architecture, kernel, what its operator configured.
    #[serde(default)]
    pub properties: BTreeMap<String, String>,
}

/// What an engine can do, as its node publishes it. How it is run there is the node's business.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Abilities {
    /// Version, where it is known.
    #[serde(default)]
    pub version: Option<String>,
    /// Words of each property.
    #[serde(default)]
    pub properties: BTreeMap<String, Vec<String>>,
}

impl Abilities {
    /// Whether all these words are among those of their properties.
    pub fn have(&self, needs: &BTreeMap<String, String>) -> bool {
        needs.iter().all(|(key, words)| {
            let known = self.properties.get(key);
            words
                .split(',')
                .all(|word| known.is_some_and(|known| known.iter().any(|has| has == word)))
        })
    }
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Node {
    /// What it says of itself.
    pub info: NodeInfo,
    /// State.
    pub state: NodeState,
    /// Whether an operator wants it drained; a lost node that comes back is then drained still.
    #[serde(default)]
    pub drain: bool,
    /// What is wrong with it, as somebody or its detector has said; it is drained for that.
    #[serde(default)]
    pub fault: Option<String>,
    /// Made anew by each start of its agent on a fresh directory; tells two agents of one name apart.
    #[serde(default)]
    pub instance: String,
    /// When it was first, and last, heard of.
    pub first_seen_ms: i64,
    /// The same; written down when its state changes, not with every heartbeat.
    pub last_seen_ms: i64,
}
