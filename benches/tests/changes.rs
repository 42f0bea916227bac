//! What packets see of a change on real links: never how long it takes, always that nothing is judged wrongly.

use std::sync::atomic::AtomicBool;

use benches::changes::{Row, measure};
use testbed::netns::Netns;

#[test]
#[ignore = "needs root: make test"]
fn no_flow_is_judged_as_before_once_a_change_is_acknowledged_nor_otherwise_where_old_and_new_agree() {
    let rows = measure(3, &AtomicBool::new(false), |_| {}).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(rows.len(), 16);
    for row in &rows {
        let Row { change, place, rounds, probes, alike, .. } = row;
        assert_eq!((*rounds, row.late, row.wrong), (3, 0, 0), "{change}, {place}: {row:?}");
        assert!(*probes >= 300 && *alike >= 2 * probes, "{change}, {place}: {row:?}");
        assert!(row.wrong_allow_us.is_some() != row.wrong_deny_us.is_some(), "{change}, {place}");
    }
    let ours = format!("podpath-bench-{}-changes-", std::process::id());
    let left = Netns::list(&ours).expect("they can be listed");
    assert!(left.is_empty(), "{left:?}");
}
