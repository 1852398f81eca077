//! The name space of checkpoints (SAGA CPR API, section 2.3.2): entries, who may do what with them, and how checkpoints
//! of the grid come into it and leave it.
//!
//! A parent is kept by its number, so that relations survive moves; what an entry's images are is looked up when
//! somebody asks. An image goes with the last name that it has, where its job needs it no more.

use std::collections::BTreeSet;

use cpr_api::model::{
    ChangeName, Checkpoint, CheckpointState, Job, MakeName, Name, NameKind, NameLock, NameRequest, NamedFile, Naming,
    Node, Owner, Page, check_path,
};
use cpr_types::{Error, ErrorKind, Result};
use serde::Deserialize;
use sqlx::AnyConnection;

use crate::caller::Caller;
use crate::db::{self, About, NEVER, Value, Write};
use crate::grid::Grid;
use crate::query::{limit_of, page_of};
use crate::retention;
use crate::rights::{ALL, OWNER, QUERY, READ, WRITE, as_owner, may_be_made, require, rights};

/// Most bytes of an entry's record, about.
const MOST_BYTES: usize = 1 << 20;
/// Most files, attributes and permissions of an entry.
const MOST: usize = 10_000;
/// Longest time that a lock may hold without being taken again, seconds.
const LONGEST_LOCK_S: u32 = 24 * 3600;
/// Parents are followed so far.
const DEEPEST: usize = 100_000;
/// An entry whose time is over, and which is needed, is looked at again after so long.
const AGAIN_MS: i64 = 10_000;
/// Values of `mode`.
const MODES: [&str; 3] = ["full", "inc 1", "inc 2"];

/// Which entries: the one at `path`, or those in the directory `below`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NameQuery {
    /// The path of one.
    pub path: Option<String>,
    /// The path of a directory.
    pub below: Option<String>,
    /// With everything below its directories.
    pub recursive: bool,
    /// Checkpoints of this job.
    pub job: Option<i64>,
    /// `next` of the page before.
    pub after: Option<String>,
    /// Items of the page, at most 1000.
    pub limit: Option<i64>,
}

fn absent(path: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no {path:?} in the name space"))
}

fn usage(what: String) -> Error {
    Error::new(ErrorKind::Usage, what)
}

fn there_is(path: &str) -> Error {
    Error::new(
        ErrorKind::AlreadyExists,
        format!("there is {path:?} already in the name space"),
    )
}

/// The directory that a path is in.
fn directory_of(path: &str) -> &str {
    match path.rsplit_once('/') {
        Some(("", _)) | None => "/",
        Some((directory, _)) => directory,
    }
}

/// When an entry may go.
fn expires_ms(name: &Name) -> i64 {
    let after = |s: u64| i64::try_from(s.saturating_mul(1000)).unwrap_or(NEVER);
    name.ttl_s.map_or(NEVER, |ttl| name.time_ms.saturating_add(after(ttl)))
}

async fn find(connection: &mut AnyConnection, path: &str) -> Result<Option<Name>> {
    let sql = "SELECT doc FROM names WHERE path = $1";
    Ok(db::docs(connection, sql, &[path.into()]).await?.into_iter().next())
}

async fn by_number(connection: &mut AnyConnection, id: i64) -> Result<Option<Name>> {
    let sql = "SELECT doc FROM names WHERE id = $1";
    Ok(db::docs(connection, sql, &[id.into()]).await?.into_iter().next())
}

/// What is below a directory, in the order of its paths: so many entries at most, behind the path `after`.
async fn below(connection: &mut AnyConnection, directory: &str, after: &str, most: i64) -> Result<Vec<Name>> {
    let start = format!("{}/", directory.trim_end_matches('/'));
    let sql =
        "SELECT doc FROM names WHERE SUBSTR(path, 1, CAST($1 AS INTEGER)) = $2 AND path > $3 ORDER BY path LIMIT $4";
    let length = Value::Int(start.chars().count() as i64);
    db::docs(
        connection,
        sql,
        &[length, start.as_str().into(), after.into(), most.into()],
    )
    .await
}

async fn children(connection: &mut AnyConnection, id: i64) -> Result<Vec<Name>> {
    db::docs(
        connection,
        "SELECT doc FROM names WHERE parent = $1 ORDER BY id",
        &[id.into()],
    )
    .await
}

async fn put(write: &mut Write<'_>, name: &Name) -> Result<()> {
    let sizes = name.files.iter().map(|file| file.url.len());
    let texts = name.attributes.iter().map(|(key, value)| key.len() + value.len());
    let count = name.files.len() + name.attributes.len() + name.permissions.len();
    if sizes.chain(texts).sum::<usize>() > MOST_BYTES || count > MOST {
        return Err(usage(format!("there is too much in {:?}", name.path)));
    }
    let doc = serde_json::to_string(name)
        .map_err(|error| Error::new(ErrorKind::Internal, "encode an entry").with_source(error))?;
    let sql = "INSERT INTO names (path, id, directory, parent, checkpoint, job, expires_ms, doc) \
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (path) DO UPDATE SET \
               id = $2, parent = $4, checkpoint = $5, job = $6, expires_ms = $7, doc = $8";
    let values = [
        name.path.as_str().into(),
        name.id.into(),
        directory_of(&name.path).into(),
        name.parent.unwrap_or(0).into(),
        name.checkpoint.unwrap_or(0).into(),
        name.job.unwrap_or(0).into(),
        expires_ms(name).into(),
        doc.as_str().into(),
    ];
    db::execute(&mut write.tx, sql, &values).await.map(drop)
}

fn new_name(id: i64, path: &str, kind: NameKind, owner: Owner, now_ms: i64) -> Name {
    Name {
        id,
        path: path.to_string(),
        kind,
        owner,
        created_ms: now_ms,
        target: None,
        checkpoint: None,
        job: None,
        time_ms: now_ms,
        ttl_s: None,
        mode: String::new(),
        parent: None,
        parent_path: None,
        children: Vec::new(),
        files: Vec::new(),
        next_file: 0,
        attributes: Default::default(),
        permissions: Default::default(),
        lock: None,
    }
}

/// Where the images of a checkpoint are, one place for each.
fn places(images: &[Checkpoint], nodes: &[Node]) -> Vec<NamedFile> {
    let url = |image: &Checkpoint| {
        let place = image.locations.first()?;
        let of = |name: &str| nodes.iter().find(|node| node.info.name == name);
        if place.node.is_empty() {
            let node = nodes.iter().find(|node| !node.info.store.is_empty())?;
            return Some(format!("{}/{}.cpr", node.info.store.trim_end_matches('/'), image.id));
        }
        let base = of(&place.node).map_or("", |node| node.info.images.as_str());
        let uid = image.owner.uid;
        Some(format!(
            "file://{}{base}/users/{uid}/images/{}.cpr",
            place.node, image.id
        ))
    };
    let unit = |image: &Checkpoint| image.part.as_ref().map_or(0, |part| part.unit);
    let all = images.iter().filter(|image| image.state.is_usable());
    all.filter_map(|image| {
        url(image).map(|url| NamedFile {
            index: unit(image),
            url,
        })
    })
    .collect()
}

impl Grid {
    /// Entries: one, or a page of those of a directory, in the order of their paths, or of those of a job.
    pub async fn names(&self, caller: &Caller, query: &NameQuery) -> Result<Page<Name>> {
        let limit = limit_of(query.limit)?;
        let mut connection = self.db.read().await?;
        let mut items: Vec<Name> = match (&query.path, &query.below, query.job) {
            (Some(path), None, None) => {
                let name = find(&mut connection, path).await?.ok_or_else(|| absent(path))?;
                require(caller, &name, QUERY | READ, "see")?;
                vec![name]
            }
            (None, Some(directory), None) => {
                if directory != "/" {
                    let name = find(&mut connection, directory)
                        .await?
                        .ok_or_else(|| absent(directory))?;
                    if name.kind != NameKind::Directory {
                        return Err(usage(format!("{directory:?} is no directory")));
                    }
                    require(caller, &name, READ, "list")?;
                }
                // In the order of their paths, which come after the last one of the page before.
                let after = query.after.as_deref().unwrap_or_default();
                match query.recursive {
                    true => below(&mut connection, directory, after, limit + 1).await?,
                    false => {
                        let sql = "SELECT doc FROM names WHERE directory = $1 AND path > $2 ORDER BY path LIMIT $3";
                        let values = [directory.as_str().into(), after.into(), (limit + 1).into()];
                        db::docs(&mut connection, sql, &values).await?
                    }
                }
            }
            (None, None, Some(job)) => {
                caller.require_job(job, db::job(&mut connection, job).await?)?;
                let (after, limit) = page_of(query.after.as_deref(), query.limit)?;
                let sql = "SELECT doc FROM names WHERE job = $1 AND id > $2 ORDER BY id LIMIT $3";
                db::docs(&mut connection, sql, &[job.into(), after.into(), (limit + 1).into()]).await?
            }
            _ => {
                return Err(usage(
                    "ask for a path, for what is below one, or for those of a job".into(),
                ));
            }
        };
        let more = items.len() as i64 > limit;
        items.truncate(limit as usize);
        let next = items.last().filter(|_| more).map(|last| match query.job {
            Some(_) => last.id.to_string(),
            None => last.path.clone(),
        });
        let nodes = db::nodes(&mut connection).await?;
        for name in &mut items {
            if query.path.is_none() && rights(caller, name) & (QUERY | READ) == 0 {
                // That it is there is known to who may list its directory.
                *name = new_name(name.id, &name.path, name.kind, name.owner.clone(), name.created_ms);
                continue;
            }
            tell(&mut connection, name, &nodes).await?;
        }
        Ok(Page { items, next })
    }

    /// Does something to an entry, and gives it as it is then; as it was, where it was removed.
    pub async fn change_name(&self, caller: &Caller, request: NameRequest) -> Result<Name> {
        let mut write = self.db.write().await?;
        let mut name = match request {
            NameRequest::Make(make) => self.make_name(&mut write, caller, make).await?,
            NameRequest::Change(change) => self.alter_name(&mut write, caller, change).await?,
            NameRequest::Move { path, to, overwrite } => {
                self.move_name(&mut write, caller, &path, &to, overwrite).await?
            }
            NameRequest::Remove { path, recursive } => self.remove_name(&mut write, caller, &path, recursive).await?,
            NameRequest::Lock { path, holder, seconds } => {
                let mut name = find(&mut write.tx, &path).await?.ok_or_else(|| absent(&path))?;
                require(caller, &name, WRITE, "lock")?;
                let now = self.clock.wall_ms();
                let other = name
                    .lock
                    .as_ref()
                    .filter(|lock| lock.holder != holder && lock.until_ms > now);
                if other.is_some() {
                    return Err(Error::new(
                        ErrorKind::Busy,
                        format!("{path:?} is locked by somebody else"),
                    ));
                }
                let until_ms = now + i64::from(seconds.min(LONGEST_LOCK_S)) * 1000;
                name.lock = Some(NameLock { holder, until_ms });
                put(&mut write, &name).await?;
                name
            }
            NameRequest::Unlock { path, holder } => {
                let mut name = find(&mut write.tx, &path).await?.ok_or_else(|| absent(&path))?;
                require(caller, &name, WRITE, "unlock")?;
                name.lock = name.lock.filter(|lock| lock.holder != holder);
                put(&mut write, &name).await?;
                name
            }
        };
        let nodes = db::nodes(&mut write.tx).await?;
        tell(&mut write.tx, &mut name, &nodes).await?;
        write.commit().await?;
        Ok(name)
    }

    /// Makes the directories that a path needs, or finds that they are there.
    async fn make_directories(&self, write: &mut Write<'_>, caller: &Caller, path: &str, parents: bool) -> Result<()> {
        let directory = directory_of(path);
        if directory == "/" {
            return may_be_made(write, caller, path, self.policy().is_user).await;
        }
        match find(&mut write.tx, directory).await? {
            Some(name) if name.kind != NameKind::Directory => Err(usage(format!("{directory:?} is no directory"))),
            Some(name) => require(caller, &name, WRITE, "write into"),
            None if !parents => Err(absent(directory)),
            None => {
                // Boxed: it is as deep as the path is long.
                Box::pin(self.make_directories(write, caller, directory, true)).await?;
                let id = write.next("name").await?;
                let name = new_name(
                    id,
                    directory,
                    NameKind::Directory,
                    caller.owner()?,
                    self.clock.wall_ms(),
                );
                put(write, &name).await
            }
        }
    }

    async fn make_name(&self, write: &mut Write<'_>, caller: &Caller, make: MakeName) -> Result<Name> {
        check_path(&make.path)?;
        if make.path == "/" {
            return Err(there_is("/"));
        }
        let before = find(&mut write.tx, &make.path).await?;
        if let Some(before) = &before {
            if !make.overwrite || before.kind == NameKind::Directory || make.kind == NameKind::Directory {
                return Err(there_is(&make.path));
            }
            require(caller, before, WRITE, "replace")?;
        }
        self.make_directories(write, caller, &make.path, make.parents).await?;
        let now = self.clock.wall_ms();
        let mut name = new_name(write.next("name").await?, &make.path, make.kind, caller.owner()?, now);
        match make.kind {
            NameKind::Directory => {}
            NameKind::Link => {
                let target = make.target.ok_or_else(|| usage("a link leads somewhere".into()))?;
                check_path(&target)?;
                name.target = Some(target);
            }
            NameKind::Checkpoint => {
                name.mode = MODES[0].into();
                if let Some(path) = &make.copy_of {
                    let model = find(&mut write.tx, path).await?.ok_or_else(|| absent(path))?;
                    require(caller, &model, READ, "read")?;
                    name.checkpoint = model.checkpoint.filter(|_| caller.may_use(&model.owner));
                    name.job = model.job;
                    name.time_ms = model.time_ms;
                    name.ttl_s = model.ttl_s;
                    name.mode = model.mode;
                    name.parent = model.parent;
                    name.next_file = model.next_file.saturating_sub(model.files.len() as u32);
                    name.attributes = model.attributes;
                }
                if let Some(job) = make.job {
                    caller.require_job(job, db::job(&mut write.tx, job).await?)?;
                    name.job = Some(job);
                }
            }
        }
        name.attributes.extend(make.attributes);
        name.ttl_s = make.ttl_s.or(name.ttl_s);
        set_mode(&mut name, make.mode)?;
        set_parent(write, &mut name, make.parent.as_deref()).await?;
        for url in make.files {
            name.files.push(NamedFile {
                index: name.next_file,
                url,
            });
            name.next_file += 1;
        }
        if let Some(before) = before {
            self.forget(write, before).await?;
        }
        put(write, &name).await?;
        Ok(name)
    }

    async fn alter_name(&self, write: &mut Write<'_>, caller: &Caller, change: ChangeName) -> Result<Name> {
        let path = &change.path;
        let mut name = find(&mut write.tx, path).await?.ok_or_else(|| absent(path))?;
        let only_permissions = ChangeName {
            path: path.clone(),
            permissions: change.permissions.clone(),
            ..ChangeName::default()
        };
        if change != only_permissions {
            require(caller, &name, WRITE, "change")?;
        }
        if !change.permissions.is_empty() {
            require(caller, &name, OWNER, "set permissions of")?;
        }
        if change.permissions.get("*").is_some_and(|bits| bits & OWNER != 0) {
            return Err(usage("not everybody can be the owner".into()));
        }
        for (id, bits) in change.permissions {
            match bits & ALL {
                0 => drop(name.permissions.remove(&id)),
                bits => drop(name.permissions.insert(id, bits)),
            }
        }
        set_mode(&mut name, change.mode)?;
        if let Some(ttl_s) = change.ttl_s {
            name.ttl_s = Some(ttl_s);
            if let Some(id) = name.checkpoint
                && let Some(mut checkpoint) = db::checkpoint(&mut write.tx, id).await?
            {
                checkpoint.ttl_s = Some(ttl_s);
                let wanted = write.wanted(id).await?;
                write.put_checkpoint(&checkpoint, &wanted).await?;
            }
        }
        for (key, value) in change.attributes {
            match value {
                Some(value) => drop(name.attributes.insert(key, value)),
                None => drop(name.attributes.remove(&key)),
            }
        }
        let held = |name: &Name, index: u32| name.files.iter().position(|file| file.index == index);
        let missing = |index: u32| {
            Error::new(
                ErrorKind::NotFound,
                format!("{path:?} has no file {index} that could be changed"),
            )
        };
        for file in change.update_files {
            let at = held(&name, file.index).ok_or_else(|| missing(file.index))?;
            name.files[at].url = file.url;
        }
        for index in change.remove_files {
            let at = held(&name, index).ok_or_else(|| missing(index))?;
            name.files.remove(at);
        }
        for url in change.add_files {
            name.files.push(NamedFile {
                index: name.next_file,
                url,
            });
            name.next_file += 1;
        }
        set_parent(write, &mut name, change.parent.as_deref()).await?;
        put(write, &name).await?;
        Ok(name)
    }

    async fn move_name(
        &self,
        write: &mut Write<'_>,
        caller: &Caller,
        path: &str,
        to: &str,
        overwrite: bool,
    ) -> Result<Name> {
        check_path(to)?;
        let name = find(&mut write.tx, path).await?.ok_or_else(|| absent(path))?;
        require(caller, &name, WRITE, "move")?;
        if to == path {
            return Ok(name);
        }
        if to == "/" || to.starts_with(&format!("{path}/")) {
            return Err(usage(format!("{path:?} cannot be moved to {to:?}")));
        }
        self.make_directories(write, caller, to, false).await?;
        if let Some(before) = find(&mut write.tx, to).await? {
            if !overwrite || before.kind == NameKind::Directory || name.kind == NameKind::Directory {
                return Err(there_is(to));
            }
            require(caller, &before, WRITE, "replace")?;
            self.forget(write, before).await?;
        }
        let mut all = match name.kind {
            NameKind::Directory => below(&mut write.tx, path, "", i64::MAX).await?,
            _ => Vec::new(),
        };
        all.insert(0, name);
        let mut moved = None;
        for mut name in all {
            db::execute(
                &mut write.tx,
                "DELETE FROM names WHERE path = $1",
                &[name.path.as_str().into()],
            )
            .await?;
            name.path = format!("{to}{}", &name.path[path.len()..]);
            put(write, &name).await?;
            moved.get_or_insert(name);
        }
        moved.ok_or_else(|| absent(path))
    }

    async fn remove_name(&self, write: &mut Write<'_>, caller: &Caller, path: &str, recursive: bool) -> Result<Name> {
        let name = find(&mut write.tx, path).await?.ok_or_else(|| absent(path))?;
        require(caller, &name, WRITE, "remove")?;
        let inside = match name.kind {
            NameKind::Directory => below(&mut write.tx, path, "", i64::MAX).await?,
            _ => Vec::new(),
        };
        if name.kind == NameKind::Directory && !recursive {
            return Err(usage(format!(
                "{path:?} is a directory, and goes only with all below it"
            )));
        }
        for other in &inside {
            require(caller, other, WRITE, "remove")?;
        }
        let goes: BTreeSet<i64> = inside.iter().map(|name| name.id).chain([name.id]).collect();
        for other in inside.iter().chain([&name]) {
            let depends = |child: &&Name| !goes.contains(&child.id) && child.mode != MODES[0];
            if let Some(child) = children(&mut write.tx, other.id).await?.iter().find(depends) {
                let text = format!(
                    "{:?} cannot go: {:?} holds only what has changed since",
                    other.path, child.path
                );
                return Err(Error::new(ErrorKind::InUse, text));
            }
        }
        for other in inside.into_iter().chain([name.clone()]) {
            let path = other.path.clone();
            if let Some(why) = self.forget(write, other).await? {
                return Err(Error::new(ErrorKind::InUse, format!("{path:?} cannot go: {why}")));
            }
        }
        Ok(name)
    }

    /// Takes an entry out; what came after it comes after what was before it. Its image goes, too, unless another entry
    /// names it. Says why the image stays where its job needs it.
    async fn forget(&self, write: &mut Write<'_>, name: Name) -> Result<Option<&'static str>> {
        for mut child in children(&mut write.tx, name.id).await? {
            child.parent = name.parent;
            put(write, &child).await?;
        }
        db::execute(&mut write.tx, "DELETE FROM names WHERE id = $1", &[name.id.into()]).await?;
        // It may have been needed for this one only.
        if let Some(parent) = name.parent
            && let Some(parent) = by_number(&mut write.tx, parent).await?
        {
            put(write, &parent).await?;
        }
        let Some(id) = name.checkpoint else { return Ok(None) };
        let sql = "SELECT id FROM names WHERE checkpoint = $1";
        if !db::rows(&mut write.tx, sql, &[id.into()]).await?.is_empty() {
            return Ok(None);
        }
        let Some(mut checkpoint) = db::checkpoint(&mut write.tx, id).await? else {
            return Ok(None);
        };
        let Some(job) = db::job(&mut write.tx, checkpoint.job).await? else {
            return Ok(None);
        };
        if !checkpoint.state.is_usable() {
            return Ok(None);
        }
        let all = db::checkpoints_of(&mut write.tx, job.id).await?;
        if let Some(why) = retention::cannot_go(&job, &all, id) {
            return Ok(Some(why));
        }
        let why = "its name was removed".to_string();
        // Boxed: that a checkpoint has gone is told to the name space.
        Box::pin(self.end_checkpoint(write, &job, &mut checkpoint, CheckpointState::Freed, why)).await?;
        Ok(None)
    }

    /// Gives a checkpoint that is complete the name its job has said, where that has said one.
    pub(crate) async fn register(&self, write: &mut Write<'_>, job: &Job, checkpoint: &Checkpoint) -> Result<()> {
        if job.spec.names.is_none() && checkpoint.name.is_none() {
            return Ok(());
        }
        let sql = "SELECT id FROM names WHERE checkpoint = $1";
        if !db::rows(&mut write.tx, sql, &[checkpoint.id.into()]).await?.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.write_down(write, job, checkpoint).await {
            // The checkpoint is as good without.
            if !matches!(
                error.kind(),
                ErrorKind::Denied | ErrorKind::Usage | ErrorKind::AlreadyExists
            ) {
                return Err(error);
            }
            let about = About {
                job: Some(job),
                node: None,
            };
            let text = format!(
                "checkpoint {} of job {} has no name: {}",
                checkpoint.id,
                job.id,
                error.chain()
            );
            write
                .note(self.clock.wall_ms(), "checkpoint.unnamed", about, text)
                .await?;
        }
        Ok(())
    }

    async fn write_down(&self, write: &mut Write<'_>, job: &Job, checkpoint: &Checkpoint) -> Result<()> {
        let generation = write.next(&format!("names of job {}", job.id)).await? - 1;
        let naming = job.spec.names.as_ref().map(|naming| naming.path(job, generation));
        let path = checkpoint.name.as_ref().map(|path| Naming::fill(path, job)).or(naming);
        let path = path
            .unwrap_or_default()
            .replace("#Generation#", &generation.to_string());
        check_path(&path)?;
        let caller = as_owner(&job.owner);
        let before = find(&mut write.tx, &path).await?;
        if let Some(before) = &before {
            if before.kind == NameKind::Directory {
                return Err(there_is(&path));
            }
            require(&caller, before, WRITE, "replace")?;
        }
        self.make_directories(write, &caller, &path, true).await?;
        let mut name = new_name(
            write.next("name").await?,
            &path,
            NameKind::Checkpoint,
            job.owner.clone(),
            self.clock.wall_ms(),
        );
        name.checkpoint = Some(checkpoint.id);
        name.job = Some(job.id);
        name.time_ms = checkpoint.stored_ms.unwrap_or(checkpoint.created_ms);
        name.ttl_s = checkpoint.ttl_s.or(job.spec.ttl_s);
        name.mode = MODES[0].into();
        name.next_file = (checkpoint.units.len() as u32).max(1);
        name.attributes.insert("generation".into(), generation.to_string());
        name.parent = parent_of(write, checkpoint).await?;
        if let Some(before) = before {
            // It was before this one, and what was before it is now.
            if name.parent == Some(before.id) {
                name.parent = before.parent;
            }
            self.forget(write, before).await?;
        }
        put(write, &name).await
    }

    /// A checkpoint has gone for good: its names go.
    pub(crate) async fn unregister(&self, write: &mut Write<'_>, checkpoint: &Checkpoint) -> Result<()> {
        let sql = "SELECT doc FROM names WHERE checkpoint = $1";
        for mut name in db::docs::<Name>(&mut write.tx, sql, &[checkpoint.id.into()]).await? {
            name.checkpoint = None;
            self.forget(write, name).await?;
        }
        Ok(())
    }

    /// Entries whose time is over go, and images with them where retention lets them (SAGA CPR, CPRTimeToLive).
    pub(crate) async fn expire_names(&self) -> Result<()> {
        let now = self.clock.wall_ms();
        let sql = "SELECT doc FROM names WHERE expires_ms <= $1 ORDER BY expires_ms LIMIT 100";
        let due: Vec<Name> = db::docs(&mut *self.db.read().await?, sql, &[now.into()]).await?;
        if due.is_empty() {
            return Ok(());
        }
        let mut write = self.db.write().await?;
        for name in due {
            let Some(name) = by_number(&mut write.tx, name.id)
                .await?
                .filter(|name| expires_ms(name) <= now)
            else {
                continue;
            };
            let stays = match name.checkpoint {
                None => {
                    let after = children(&mut write.tx, name.id).await?;
                    let needed = after.iter().any(|child| child.mode != MODES[0]);
                    if !needed {
                        self.forget(&mut write, name.clone()).await?;
                    }
                    needed
                }
                Some(id) => {
                    if let Some(checkpoint) = db::checkpoint(&mut write.tx, id).await?
                        && let Some(job) = db::job(&mut write.tx, checkpoint.job).await?
                    {
                        self.free_surplus(&mut write, &job).await?;
                    }
                    by_number(&mut write.tx, name.id).await?.is_some()
                }
            };
            if stays {
                let sql = "UPDATE names SET expires_ms = $1 WHERE id = $2";
                db::execute(&mut write.tx, sql, &[(now + AGAIN_MS).into(), name.id.into()]).await?;
            }
        }
        write.commit().await
    }
}

/// Fills in what follows from other records.
async fn tell(connection: &mut AnyConnection, name: &mut Name, nodes: &[Node]) -> Result<()> {
    name.children = children(connection, name.id)
        .await?
        .into_iter()
        .map(|child| child.path)
        .collect();
    if let Some(parent) = name.parent {
        name.parent_path = by_number(connection, parent).await?.map(|parent| parent.path);
    }
    if let Some(id) = name.checkpoint
        && let Some(checkpoint) = db::checkpoint(connection, id).await?
    {
        let images = match checkpoint.is_set() {
            true => db::images_of(connection, &checkpoint).await?,
            false => vec![checkpoint],
        };
        let mut files = places(&images, nodes);
        files.append(&mut name.files);
        name.files = files;
    }
    name.files.sort_by_key(|file| file.index);
    Ok(())
}

/// The entry of the checkpoint directly before: of the same start of the job, or the one that start went on from.
async fn parent_of(write: &mut Write<'_>, checkpoint: &Checkpoint) -> Result<Option<i64>> {
    let all = db::checkpoints_of(&mut write.tx, checkpoint.job).await?;
    let same = |c: &&Checkpoint| c.incarnation == checkpoint.incarnation && c.id < checkpoint.id;
    let before = all.iter().filter(same).map(|c| c.id).rev();
    for id in before.chain(checkpoint.parent) {
        let sql = "SELECT doc FROM names WHERE checkpoint = $1 ORDER BY id";
        let names: Vec<Name> = db::docs(&mut write.tx, sql, &[id.into()]).await?;
        if let Some(name) = names.first() {
            return Ok(Some(name.id));
        }
    }
    Ok(None)
}

fn set_mode(name: &mut Name, mode: Option<String>) -> Result<()> {
    let Some(mode) = mode else { return Ok(()) };
    if !MODES.contains(&mode.as_str()) {
        return Err(usage(format!(
            "a checkpoint's mode is one of {}, not {mode:?}",
            MODES.join(", ")
        )));
    }
    name.mode = mode;
    Ok(())
}

/// Puts an entry below another parent, or below none where its path is empty; never below itself.
async fn set_parent(write: &mut Write<'_>, name: &mut Name, parent: Option<&str>) -> Result<()> {
    let Some(path) = parent else { return Ok(()) };
    if path.is_empty() {
        name.parent = None;
        return Ok(());
    }
    let parent = find(&mut write.tx, path).await?.ok_or_else(|| absent(path))?;
    if name.kind != NameKind::Checkpoint || parent.kind != NameKind::Checkpoint {
        return Err(usage("only checkpoints have parents".into()));
    }
    let mut above = Some(parent.id);
    for _ in 0..DEEPEST {
        match above {
            None => break,
            Some(id) if id == name.id => {
                return Err(usage(format!(
                    "{path:?} comes after {:?}, and cannot be before it",
                    name.path
                )));
            }
            Some(id) => above = by_number(&mut write.tx, id).await?.and_then(|name| name.parent),
        }
    }
    name.parent = Some(parent.id);
    Ok(())
}
