//! Which engines work on this node and what they can do: looked for at the start, and again when a file that describes
//! one has changed, so that an engine comes and goes without a restart (GCA-CTS-13, GCA-UC-5.5.0).

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use cpr_api::model::{Abilities, NATIVE};
use cpr_engines::Registry;
use cpr_types::Result;

use super::Agent;
use crate::log;

/// How often it is looked whether files have changed.
const LOOK: Duration = Duration::from_secs(1);
/// Engines are asked again after so long though no file has changed: their programs may have come or gone.
const ASK: Duration = Duration::from_secs(60);

/// The property of engines that copy memory while a job runs.
const LIVE: &str = "live";

/// What a node publishes of its engines: nothing of how they are run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Published {
    /// Those that work, the preferred one first.
    pub(super) names: Vec<String>,
    /// Classes with those of their members that work.
    pub(super) classes: BTreeMap<String, Vec<String>>,
    /// What each can do.
    pub(super) abilities: BTreeMap<String, Abilities>,
}

impl Published {
    /// Looks for them. Where that fails there is our own at least.
    pub(super) fn look() -> Published {
        Published::try_look().unwrap_or_else(|error| {
            log(format!("which engines there are is not known: {}", error.chain()));
            Published {
                names: vec![NATIVE.to_string()],
                ..Published::default()
            }
        })
    }

    fn try_look() -> Result<Published> {
        let registry = Registry::of_site()?;
        let mut found = Published::default();
        for engine in registry.engines() {
            let probe = engine.probe();
            if !probe.works() {
                continue;
            }
            found.names.push(engine.name.clone());
            for class in engine.member_of(registry.classes()) {
                let members = found.classes.entry(class.to_string()).or_default();
                members.push(engine.name.clone());
            }
            // Which takes more than the engine.
            let lacks_live = engine.properties.contains_key(LIVE) && engine.require_live().is_err();
            let words = engine
                .properties
                .iter()
                .filter(|(key, _)| !(lacks_live && *key == LIVE));
            let able = Abilities {
                version: probe.version,
                properties: words
                    .map(|(key, words)| (key.clone(), words.words().to_vec()))
                    .collect(),
            };
            found.abilities.insert(engine.name.clone(), able);
        }
        Ok(found)
    }
}

impl Published {
    /// Whether an engine copies memory while a job runs.
    pub(super) fn is_live(&self, engine: &str) -> bool {
        let words = self.abilities.get(engine).and_then(|able| able.properties.get(LIVE));
        words.is_some_and(|words| words.iter().any(|word| word == "yes"))
    }
}

impl Agent {
    /// The engines as they were last looked for.
    pub(super) fn engines(&self) -> Published {
        self.engines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Looks for engines again and again, beside the heartbeats: a program that is asked may take its time.
    pub(super) fn watch_engines(self: &Arc<Self>) -> std::io::Result<()> {
        let agent = self.clone();
        let mut mark = Registry::site_mark();
        let mut asked = Instant::now();
        let watch = move || loop {
            std::thread::sleep(LOOK);
            let now = Registry::site_mark();
            if now == mark && asked.elapsed() < ASK {
                continue;
            }
            (mark, asked) = (now, Instant::now());
            let found = Published::look();
            *agent.engines.lock().unwrap_or_else(PoisonError::into_inner) = found;
        };
        std::thread::Builder::new()
            .name("engines".into())
            .spawn(watch)
            .map(drop)
    }
}
