//! Who may reach whom as a page for a browser: one file, that asks nobody for anything.
//!
//! What the page holds grows with what policies tell apart, not with the pairs of pods: ends that fare alike are one
//! class, a row of classes is written as runs, equal rows once. The page's own script finds each cell from them, as
//! [`Data::cell`] does here.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;

use serde::{Deserialize, Serialize};
use userspace::engine::emulator::Matrix;
use userspace::engine::emulator::matrix::{Decided, Direction, Why};
use userspace::error::Error;
use userspace::model::{Cluster, Port, Protocol, Who};

use crate::probe::Grid;

/// The page around the data.
const PAGE: &str = include_str!("page/grid.html");
/// Where it goes.
const PLACE: &str = "/*DATA*/";

/// What a page says of a flow between two that no policy is asked about.
const OPEN: usize = 0;
/// What it says of a pod and itself.
const ITSELF: usize = 1;
/// What it says of a pod's own node.
const OWN_NODE: usize = 2;

/// Everything a page shows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Data {
    cluster: String,
    /// Namespaces, and what is in none: `nodes`, `outside`.
    groups: Vec<String>,
    ports: Vec<String>,
    ends: Vec<End>,
    /// What is said of cells: whether they pass, and why.
    says: Vec<(bool, String)>,
    /// Rows of classes: what is said, and of how many classes in turn.
    rows: Vec<Vec<usize>>,
    /// By port, the row of each class that sends.
    cells: Vec<Vec<usize>>,
    /// By class and node, what pods are told at each port that dial the node they are on.
    own: BTreeMap<String, Vec<usize>>,
    /// Flows that were measured and fared otherwise than expected: source, target, port.
    differs: Vec<(usize, usize, usize)>,
}

/// Somebody in a page.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct End {
    name: String,
    group: usize,
    class: usize,
    /// The node it is on, by its place; none outside.
    node: Option<usize>,
    /// It is that node itself, or lives in its network.
    host: bool,
}

impl Data {
    /// What a cluster's page shows at these ports; what differs from what is expected is a grid's.
    ///
    /// # Errors
    /// The cluster cannot be planned.
    pub fn of(cluster: &Cluster, ports: &[Port], grid: Option<&Grid>) -> Result<Self, Error> {
        let matrix = Matrix::of(cluster, ports)?;
        let mut data = Self {
            cluster: cluster.name.clone(),
            groups: Vec::new(),
            ports: ports.iter().map(ToString::to_string).collect(),
            ends: Vec::new(),
            says: Vec::new(),
            rows: Vec::new(),
            cells: Vec::new(),
            own: BTreeMap::new(),
            differs: differing(&matrix, grid),
        };
        let mut says = Places::default();
        for why in [
            (true, "no policy is asked".to_owned()),
            (true, Why::Itself.to_string()),
            (true, Why::OwnNode.to_string()),
        ] {
            says.of(why);
        }
        let members = data.seat(cluster, &matrix);
        data.fill(&matrix, &members, &mut says);
        data.says = says.list;
        Ok(data)
    }

    /// The ends, and of each class some that stand for it: two if it has as many, and some on two nodes if it has such.
    fn seat(&mut self, cluster: &Cluster, matrix: &Matrix) -> Vec<Vec<usize>> {
        let nodes: HashMap<&str, usize> =
            cluster.nodes.iter().zip(0..).map(|(node, place)| (node.name.as_str(), place)).collect();
        let (mut groups, mut classes) = (Places::default(), Places::default());
        let mut members: Vec<Vec<usize>> = Vec::new();
        for (place, who) in matrix.endpoints().iter().enumerate() {
            // A pod that no rule allows anything may be isolated by another policy than one judged alike.
            let isolating = [Direction::Egress, Direction::Ingress].map(|way| matrix.isolating(place, way));
            let class = classes.of((matrix.class(place), isolating));
            let (group, node, host) = match who {
                Who::Pod(_) => {
                    // Pods come first, in the cluster's order.
                    let pod = &cluster.pods[place];
                    (pod.namespace.as_str(), nodes.get(pod.node.as_str()).copied(), pod.host_network)
                }
                Who::Node(name) => ("nodes", nodes.get(name.as_str()).copied(), true),
                _ => ("outside", None, false),
            };
            self.ends.push(End {
                name: who.to_string(),
                group: groups.of(group.to_owned()),
                class,
                node,
                host,
            });
            if class == members.len() {
                members.push(Vec::new());
            }
            let of_class = &mut members[class];
            let nodes: BTreeSet<_> = of_class.iter().map(|one| self.ends[*one].node).collect();
            if of_class.len() < 2 || (nodes.len() == 1 && !nodes.contains(&node)) {
                of_class.push(place);
            }
        }
        self.groups = groups.list;
        members
    }

    fn fill(&mut self, matrix: &Matrix, members: &[Vec<usize>], says: &mut Places<(bool, String)>) {
        let (mut rows, mut cells) = (Places::default(), Vec::new());
        for port in 0..matrix.ports().len() {
            let row_of = |from: &Vec<usize>| {
                let mut row: Vec<usize> = Vec::new();
                for to in members {
                    let (from, to) = self.pair(from, to);
                    let said = says.of(said(matrix.decided_by(from, to, port)));
                    match row.as_mut_slice() {
                        [.., last, count] if *last == said => *count += 1,
                        _ => row.extend([said, 1]),
                    }
                }
                rows.of(row)
            };
            let of_port: Vec<usize> = members.iter().map(row_of).collect();
            cells.push(of_port);
        }
        (self.rows, self.cells) = (rows.list, cells);
        let nodes: HashMap<usize, usize> = (self.ends.iter().enumerate())
            .filter_map(|(place, end)| Some((end.node.filter(|_| end.host)?, place)))
            .collect();
        for (place, end) in self.ends.iter().enumerate().filter(|(_, end)| !end.host) {
            let Some((node, at)) = end.node.and_then(|node| Some((node, *nodes.get(&node)?))) else {
                continue;
            };
            self.own.entry(format!("{}:{node}", end.class)).or_insert_with(|| {
                (0..matrix.ports().len())
                    .map(|port| says.of(said(matrix.decided_by(place, at, port))))
                    .collect()
            });
        }
    }

    /// Two that stand for two classes: not one and the same, nor a node and a pod on it, where there are others.
    fn pair(&self, from: &[usize], to: &[usize]) -> (usize, usize) {
        let usual = |(from, to): &(usize, usize)| {
            let (source, target) = (&self.ends[*from], &self.ends[*to]);
            from != to && (source.host == target.host || source.node != target.node)
        };
        let mut pairs = from.iter().flat_map(|from| to.iter().map(|to| (*from, *to)));
        pairs.find(usual).unwrap_or((from[0], to[0]))
    }

    /// Whether a flow passes, and why, by the places of its ends and its port.
    pub fn cell(&self, from: usize, to: usize, port: usize) -> &(bool, String) {
        let (source, target) = (&self.ends[from], &self.ends[to]);
        let near = source.node.is_some() && source.node == target.node;
        let said = match (source.host, target.host) {
            (false, false) if from == to && source.node.is_some() => ITSELF,
            _ if from == to => OPEN,
            (true, false) if near => OWN_NODE,
            (false, true) if near => {
                let node = source.node.unwrap_or_default();
                self.own.get(&format!("{}:{node}", source.class)).map_or(OPEN, |said| said[port])
            }
            _ => {
                let row = &self.rows[self.cells[port][source.class]];
                let mut left = target.class;
                let run = row.chunks_exact(2).find(|run| {
                    let here = left < run[1];
                    left = left.saturating_sub(run[1]);
                    here
                });
                run.map_or(OPEN, |run| run[0])
            }
        };
        &self.says[said]
    }

    /// The page.
    ///
    /// # Errors
    /// Never: the data has a form.
    pub fn page(&self) -> serde_json::Result<String> {
        // A name cannot end the script that it is part of.
        let data = serde_json::to_string(self)?.replace('<', "\\u003c");
        Ok(PAGE.replacen(PLACE, &data, 1))
    }
}

/// Whether a cell passes, and why, in words.
fn said(decided: Option<Decided>) -> (bool, String) {
    decided.map_or((true, "no policy is asked".to_owned()), |decided| {
        let passes = decided.verdict == userspace::engine::emulator::matrix::Verdict::Allow;
        let audited = if decided.audited() { " (passes: only tried out)" } else { "" };
        (passes, format!("{}: {}{audited}", decided.direction, decided.why))
    })
}

/// What was measured and differs, as places in the matrix; ports of Services are none of its.
fn differing(matrix: &Matrix, grid: Option<&Grid>) -> Vec<(usize, usize, usize)> {
    let rows = grid.into_iter().flat_map(|grid| &grid.rows).filter(|row| row.differs());
    let at = |port: u16, protocol: Protocol| {
        matrix.ports().iter().position(|it| (it.number, it.protocol) == (port, protocol))
    };
    rows.filter_map(|row| {
        let flow = &row.flow;
        Some((matrix.place(&flow.from)?, matrix.place(&flow.to)?, at(flow.port, flow.protocol)?))
    })
    .collect()
}

/// Places for things, in the order in which they are first met.
struct Places<T> {
    list: Vec<T>,
    known: HashMap<T, usize>,
}

impl<T> Default for Places<T> {
    fn default() -> Self {
        Self { list: Vec::new(), known: HashMap::new() }
    }
}

impl<T: Clone + Eq + Hash> Places<T> {
    fn of(&mut self, thing: T) -> usize {
        if let Some(place) = self.known.get(&thing) {
            return *place;
        }
        self.list.push(thing.clone());
        self.known.insert(thing, self.list.len() - 1);
        self.list.len() - 1
    }
}
