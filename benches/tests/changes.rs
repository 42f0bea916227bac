//! What packets see of a change on real links: never how long it takes, always that nothing is judged wrongly.

use std::process::{Command, Stdio};

use serde_json::Value;
use testbed::netns::Netns;

#[test]
#[ignore = "needs root: make test"]
fn no_flow_is_judged_as_before_once_a_change_is_acknowledged_nor_otherwise_where_old_and_new_agree() {
    let mut bench = Command::new(env!("CARGO_BIN_EXE_podpath-bench"));
    let bench = bench.args(["changes", "--rounds", "3", "--output", "json"]).stdout(Stdio::piped());
    let bench = bench.spawn().expect("it starts");
    let ours = format!("podpath-bench-{}-changes-", bench.id());
    let ended = bench.wait_with_output().expect("it ends");
    assert!(ended.status.success(), "{}", ended.status);
    let rows: Vec<Value> = serde_json::from_slice(&ended.stdout).expect("an array");
    assert_eq!(rows.len(), 16);
    for row in &rows {
        let what = format!("{}, {}: {row}", row["change"], row["place"]);
        assert_eq!([&row["rounds"], &row["late"], &row["wrong"]], [3, 0, 0], "{what}");
        let (probes, alike) = (row["probes"].as_u64().expect(&what), row["alike"].as_u64().expect(&what));
        assert!(probes >= 300 && alike >= 2 * probes, "{what}");
        assert!(row["wrong_allow_us"].is_null() != row["wrong_deny_us"].is_null(), "{what}");
    }
    let left = Netns::list(&ours).expect("they can be listed");
    assert!(left.is_empty(), "{left:?}");
}
