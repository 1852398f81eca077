//! The store that nodes share, as the service sees it: images that nobody needs any more are removed from it.
//!
//! What the database does not know is left alone: it may have been brought back from a copy that is older.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cpr_api::model::CheckpointState;
use cpr_grid::{Caller, Grid, Role};
use cpr_types::{Context, ErrorKind, Result};

use crate::log;

/// How often it is looked through.
const PAUSE: Duration = Duration::from_secs(20);

/// Looks through the store again and again, for ever.
pub async fn keep_clean(grid: Arc<Grid>, store: PathBuf) -> Result<()> {
    let mut complaint = String::new();
    loop {
        let text = clean(&grid, &store)
            .await
            .err()
            .map(|error| error.chain())
            .unwrap_or_default();
        if text != complaint && !text.is_empty() {
            log(format!("looking after the store: {text}"));
        }
        complaint = text;
        tokio::time::sleep(PAUSE).await;
    }
}

/// The checkpoint whose image, whole (`ID.cpr`) or on its way (`.ID.NODE.part`), has this name.
fn checkpoint(name: &str) -> Option<i64> {
    let whole = name.strip_suffix(".cpr");
    let part = || {
        name.strip_suffix(".part")?
            .strip_prefix('.')?
            .split_once('.')
            .map(|(id, _)| id)
    };
    whole.or_else(part)?.parse().ok()
}

async fn clean(grid: &Grid, store: &Path) -> Result<()> {
    let what = || format!("list {}", store.display());
    let own = Caller {
        name: "cprd".to_string(),
        user: None,
        role: Role::Admin,
    };
    let mut entries = tokio::fs::read_dir(store).await.context(what)?;
    while let Some(entry) = entries.next_entry().await.context(what)? {
        let Some(id) = entry.file_name().to_str().and_then(checkpoint) else {
            continue;
        };
        let over = match grid.checkpoint(&own, id).await {
            Ok(checkpoint) => matches!(
                checkpoint.state,
                CheckpointState::Failed | CheckpointState::Lost | CheckpointState::Freed
            ),
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        if over {
            let path = entry.path();
            tokio::fs::remove_file(&path)
                .await
                .context(|| format!("remove {}", path.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_known_by_their_names() {
        for (name, id) in [
            ("17.cpr", Some(17)),
            (".17.n1.part", Some(17)),
            (".17.rack-2.n1.part", Some(17)),
            ("17", None),
            ("x.cpr", None),
            (".part", None),
            (".x.n1.part", None),
            ("README", None),
        ] {
            assert_eq!(checkpoint(name), id, "{name}");
        }
    }
}
