//! `chains` in memory against the oracle: two readings of the same text that share no code. `random.rs` does it
//! on clusters drawn by lot.

use testbed::dataplane::chains::judge::Judge;
use testbed::probe::{Grid, all_pairs};
use userspace::model;

#[test]
fn chains_reach_in_the_shop_exactly_whom_its_policies_let() {
    let text = include_str!("../examples/shop.yaml");
    let cluster = model::load_text("shop.yaml", text).unwrap_or_else(|error| panic!("{error}"));
    let mut judge = Judge::new(&cluster).unwrap_or_else(|error| panic!("{error}"));
    let grid = Grid::measure(&cluster, all_pairs(&cluster), &mut judge);
    let grid = grid.unwrap_or_else(|error| panic!("{error}"));
    assert!(grid.rows.len() > 20, "{} flows", grid.rows.len());
    assert_eq!(grid.differences, 0, "{}", grid.differing());
}
