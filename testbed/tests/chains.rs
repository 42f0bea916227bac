//! `chains` in memory against the oracle: two readings of the same text that share no code.

use testbed::dataplane::chains::judge::Judge;
use testbed::probe::{Grid, all_pairs};
use userspace::model;

#[test]
fn chains_reach_in_the_shop_exactly_whom_its_policies_let() {
    let text = include_str!("../examples/shop.yaml");
    let cluster = model::load_text("shop.yaml", text).unwrap_or_else(|error| panic!("{error}"));
    let mut judge = Judge::new(&cluster).unwrap_or_else(|error| panic!("{error}"));
    let flows = all_pairs(&cluster);
    let grid = Grid::measure(&cluster, flows, &mut judge).unwrap_or_else(|error| panic!("{error}"));
    let different: Vec<String> = grid
        .rows
        .iter()
        .filter(|row| row.differs())
        .map(|row| format!("{}: {} instead of {:?}", row.flow, row.measured.verdict, row.expectation))
        .collect();
    assert!(grid.rows.len() > 100, "{} flows", grid.rows.len());
    assert!(different.is_empty(), "{}", different.join("\n"));
}
