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
