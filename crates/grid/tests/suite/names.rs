//! The name space of checkpoints, as it is asked for.

use cpr_api::model::*;
use cpr_grid::NameQuery;
use cpr_types::ErrorKind;

use super::support::*;

#[test]
fn what_is_in_a_directory_comes_in_pages_and_each_entry_once() {
    with_each_database("names", |place| async move {
        let grid = place.open().await;
        let ada = user("ada", 1000);
        let make = async |path: &str, kind: &str| {
            let made = serde_json::json!({ "op": "make", "path": path, "kind": kind, "parents": true });
            let made: NameRequest = serde_json::from_value(made).unwrap();
            grid.change_name(&ada, made).await.unwrap();
        };
        let all = ["/ada/B", "/ada/a", "/ada/a-b", "/ada/ab", "/ada/é"];
        for path in all {
            make(path, "directory").await;
            make(&format!("{path}/in.cpr"), "checkpoint").await;
        }
        // In pages of this size: every path, in the order in which they come.
        let listed = async |recursive: bool, limit: i64| {
            let mut query = NameQuery {
                below: Some("/ada".into()),
                recursive,
                limit: Some(limit),
                ..NameQuery::default()
            };
            let mut paths = Vec::new();
            loop {
                let page = grid.names(&ada, &query).await.unwrap();
                assert!(page.items.len() as i64 <= limit, "{}", page.items.len());
                paths.extend(page.items.into_iter().map(|name| name.path));
                query.after = page.next;
                if query.after.is_none() {
                    return paths;
                }
            }
        };
        for (recursive, count) in [(false, all.len()), (true, 2 * all.len())] {
            let whole = listed(recursive, 1000).await;
            assert_eq!(whole.len(), count, "{whole:?}");
            assert!(all.iter().all(|path| whole.iter().any(|found| found == path)));
            for limit in [1, 2, 5, 10] {
                assert_eq!(listed(recursive, limit).await, whole, "{limit}");
            }
        }
        let wrong = NameQuery {
            below: Some("/ada".into()),
            limit: Some(0),
            ..NameQuery::default()
        };
        assert_eq!(grid.names(&ada, &wrong).await.unwrap_err().kind(), ErrorKind::Usage);
    });
}

#[test]
fn the_root_is_everybodys_and_what_is_in_it_is_of_whoever_has_made_it() {
    with_each_database("owners", |place| async move {
        let policy = cpr_grid::Policy {
            is_user: |name| name == "carol",
            ..cpr_grid::Policy::default()
        };
        let grid = place.open_with(policy).await;
        let (ada, bob) = (user("ada", 1000), user("bob", 1001));
        let ask = async |caller: &cpr_grid::Caller, request: serde_json::Value| {
            let request: NameRequest = serde_json::from_value(request).unwrap();
            let done = grid.change_name(caller, request).await;
            done.map_err(|error| error.kind())
        };
        let directory = |path: &str| serde_json::json!({ "op": "make", "path": path, "kind": "directory" });
        let entry =
            |path: &str| serde_json::json!({ "op": "make", "path": path, "kind": "checkpoint", "overwrite": true });
        let remove = |path: &str| serde_json::json!({ "op": "remove", "path": path, "recursive": true });
        let rename = |path: &str, to: &str| serde_json::json!({ "op": "move", "path": path, "to": to });
        ask(&ada, directory("/shared")).await.unwrap();
        ask(&ada, entry("/shared/one.cpr")).await.unwrap();
        ask(&ada, entry("/top.cpr")).await.unwrap();
        for request in [
            directory("/shared/bobs"),
            entry("/shared/two.cpr"),
            entry("/top.cpr"),
            remove("/shared"),
            remove("/top.cpr"),
            rename("/shared", "/mine"),
            rename("/top.cpr", "/mine.cpr"),
        ] {
            assert_eq!(
                ask(&bob, request.clone()).await.unwrap_err(),
                ErrorKind::Denied,
                "{request}"
            );
        }
        assert_eq!(
            ask(&bob, directory("/shared")).await.unwrap_err(),
            ErrorKind::AlreadyExists
        );
        // Who is listed may.
        let listed = serde_json::json!({ "op": "change", "path": "/shared", "permissions": { "user:bob": 4 } });
        ask(&ada, listed).await.unwrap();
        ask(&bob, entry("/shared/two.cpr")).await.unwrap();
        // Nobody has the name of another, and everybody their own.
        grid.submit(&bob, spec(), None).await.unwrap();
        for request in [
            directory("/bob"),
            entry("/bob"),
            rename("/top.cpr", "/bob"),
            serde_json::json!({ "op": "make", "path": "/carol/a.cpr", "kind": "checkpoint", "parents": true }),
        ] {
            assert_eq!(
                ask(&ada, request.clone()).await.unwrap_err(),
                ErrorKind::Denied,
                "{request}"
            );
        }
        ask(&bob, directory("/bob")).await.unwrap();
        ask(&admin(), directory("/carol")).await.unwrap();
        ask(&admin(), remove("/bob")).await.unwrap();
        ask(&admin(), remove("/shared")).await.unwrap();
    });
}
