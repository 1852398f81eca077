//! What programs save when they like is brought where the images of the grid are, and becomes known to the service
//! (GCA-UC-5.1.8).

use cpr_api::agent::{CheckpointResult, Incarnation, OwnImage};
use cpr_api::model::{NATIVE, Owner};
use cpr_node::StateDir;
use cpr_types::{Error, ErrorKind, Result};

use super::Agent;
use super::jobs::stored;
use crate::files::{Copying, Place};

impl Agent {
    /// The newest image of each job here that its program has made. Images that we have asked for are kept elsewhere.
    pub(super) fn own_images(&self) -> Vec<OwnImage> {
        let records: Vec<(Incarnation, u32)> = {
            let state = self.state();
            // Those of units are of no moment of their job.
            let records = state.records.iter().filter(|(incarnation, record)| {
                incarnation.unit.is_none() && record.began && !record.killed && record.saves_itself
            });
            records
                .map(|(incarnation, record)| (*incarnation, record.owner.uid))
                .collect()
        };
        let newest = records.into_iter().filter_map(|(incarnation, uid)| {
            let state = StateDir::look(&self.layout.state(uid), uid).ok()?;
            let images = state.job(&incarnation.to_string()).and_then(|job| job.images()).ok()?;
            let number = images.iter().map(|image| image.number).max()?;
            Some(OwnImage { incarnation, number })
        });
        newest.collect()
    }

    /// Whether programs of an engine may save themselves. An image of ours may need others that are not brought with
    /// it.
    pub(super) fn saves_itself(engine: &str) -> bool {
        engine != NATIVE
    }

    /// Brings such an image where others are, as its user: the program could put anything in its place.
    pub(super) fn take_own(
        &self,
        incarnation: Incarnation,
        owner: &Owner,
        id: i64,
        number: u64,
    ) -> Result<CheckpointResult> {
        let missing = || Error::new(ErrorKind::NotFound, format!("image {number} of its own is gone"));
        let state = StateDir::look(&self.layout.state(owner.uid), owner.uid)?;
        let images = state.job(&incarnation.to_string())?.images()?;
        let image = images
            .into_iter()
            .find(|image| image.number == number)
            .ok_or_else(missing)?;
        let path = self.layout.image(owner.uid, id);
        let anywhere = |path| Place { below: None, path };
        let copying = Copying {
            from: anywhere(image.path),
            to: anywhere(path.clone()),
            append: false,
            if_missing: false,
            tag: "cpr-own".into(),
        };
        self.runner.copy(owner, &self.layout.state(owner.uid), &copying)?;
        stored(&path, &serde_json::Value::Null)
    }
}
