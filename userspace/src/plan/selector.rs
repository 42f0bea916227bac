//! Which pods a label selector names.
//!
//! Source: Kubernetes, "Labels and Selectors".

use std::collections::{BTreeSet, HashMap};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

use super::Family;
use super::bits::Bits;
use crate::model::{Cluster, Labels, Pod};

/// A label selector in a normal form: selectors that demand the same are equal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Selector(BTreeSet<Requirement>);

/// One demand of a selector.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Requirement {
    In(String, BTreeSet<String>),
    NotIn(String, BTreeSet<String>),
    Exists(String),
    DoesNotExist(String),
}

impl Selector {
    /// Reads a selector; one without demands names everything.
    ///
    /// # Errors
    /// What is wrong with it, as the end of a sentence.
    pub(super) fn read(selector: &LabelSelector) -> Result<Self, String> {
        let labels = selector.match_labels.iter().flatten();
        let labels = labels.map(|(key, value)| Ok(Requirement::In(key.clone(), [value.clone()].into())));
        let expressions = selector.match_expressions.iter().flatten().map(Requirement::read);
        labels.chain(expressions).collect::<Result<_, _>>().map(Self)
    }
    /// Whether it names what has these labels.
    pub(super) fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|requirement| {
            let one_of = |key, values: &BTreeSet<String>| {
                labels.get(key).is_some_and(|value: &String| values.contains(value))
            };
            match requirement {
                Requirement::In(key, values) => one_of(key, values),
                Requirement::NotIn(key, values) => !one_of(key, values),
                Requirement::Exists(key) => labels.contains_key(key),
                Requirement::DoesNotExist(key) => !labels.contains_key(key),
            }
        })
    }
}

impl Requirement {
    fn read(expression: &LabelSelectorRequirement) -> Result<Self, String> {
        let key = expression.key.clone();
        let values = || expression.values.iter().flatten().cloned().collect();
        match expression.operator.as_str() {
            "In" => Ok(Self::In(key, values())),
            "NotIn" => Ok(Self::NotIn(key, values())),
            "Exists" => Ok(Self::Exists(key)),
            "DoesNotExist" => Ok(Self::DoesNotExist(key)),
            other => Err(format!("the operator {other:?} is none of In, NotIn, Exists, DoesNotExist")),
        }
    }
}

/// Labelled things by label.
#[derive(Debug)]
struct Index<'a> {
    count: usize,
    keys: HashMap<&'a str, HashMap<&'a str, Vec<usize>>>,
}

impl<'a> Index<'a> {
    fn of(things: impl Iterator<Item = &'a Labels>) -> Self {
        let mut index = Self { count: 0, keys: HashMap::new() };
        for labels in things {
            for (key, value) in labels {
                index.keys.entry(key).or_default().entry(value).or_default().push(index.count);
            }
            index.count += 1;
        }
        index
    }
    /// The places of the things that the selector names.
    fn select(&self, selector: &Selector) -> Bits {
        let mut selected = Bits::below(self.count);
        for requirement in &selector.0 {
            match requirement {
                Requirement::In(key, values) => selected.intersect(&self.with_value(key, values)),
                Requirement::NotIn(key, values) => selected.subtract(&self.with_value(key, values)),
                Requirement::Exists(key) => selected.intersect(&self.with_key(key)),
                Requirement::DoesNotExist(key) => selected.subtract(&self.with_key(key)),
            }
        }
        selected
    }
    fn with_value(&self, key: &str, values: &BTreeSet<String>) -> Bits {
        let by_value = self.keys.get(key);
        let things = values.iter().filter_map(|value| by_value?.get(value.as_str()));
        things.flatten().copied().collect()
    }
    fn with_key(&self, key: &str) -> Bits {
        self.keys.get(key).into_iter().flat_map(HashMap::values).flatten().copied().collect()
    }
}

/// The namespaces that a selector is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Namespaces {
    /// This one.
    Named(String),
    /// Those with such labels.
    Labelled(Selector),
}

impl Namespaces {
    /// Whether the namespace of this name and these labels is one of them.
    pub(super) fn matches(&self, name: &str, labels: &Labels) -> bool {
        match self {
            Self::Named(named) => named == name,
            Self::Labelled(selector) => selector.matches(labels),
        }
    }
}

/// The pods that policies can name: those with an address of their own.
#[derive(Debug)]
pub(super) struct Pods<'a, A> {
    /// Each pod and its address, in the cluster's order. Sets of pods count along this list.
    pub(super) list: Vec<(&'a Pod, A)>,
    by_label: Index<'a>,
    namespaces: HashMap<&'a str, usize>,
    namespaces_by_label: Index<'a>,
    /// The pods of each namespace.
    members: Vec<Bits>,
}

impl<'a, A: Family> Pods<'a, A> {
    pub(super) fn of(cluster: &'a Cluster) -> Self {
        let own = cluster.pods.iter().filter(|pod| !pod.host_network);
        let list: Vec<_> = own.filter_map(|pod| Some((pod, A::among(&pod.addresses)?))).collect();
        let namespaces: HashMap<_, _> =
            cluster.namespaces.keys().enumerate().map(|(index, name)| (name.as_str(), index)).collect();
        let mut members = vec![Bits::default(); namespaces.len()];
        for (index, (pod, _)) in list.iter().enumerate() {
            if let Some(namespace) = namespaces.get(pod.namespace.as_str()) {
                members[*namespace].insert(index);
            }
        }
        Self {
            by_label: Index::of(list.iter().map(|(pod, _)| &pod.labels)),
            namespaces_by_label: Index::of(cluster.namespaces.values()),
            list,
            namespaces,
            members,
        }
    }
    /// The pods in these namespaces that the selector names.
    pub(super) fn select(&self, namespaces: &Namespaces, selector: &Selector) -> Bits {
        let mut selected = Bits::default();
        match namespaces {
            Namespaces::Named(name) => {
                if let Some(namespace) = self.namespaces.get(name.as_str()) {
                    selected.unite(&self.members[*namespace]);
                }
            }
            Namespaces::Labelled(labels) => {
                for namespace in self.namespaces_by_label.select(labels).iter() {
                    selected.unite(&self.members[namespace]);
                }
            }
        }
        selected.intersect(&self.by_label.select(selector));
        selected
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn selected(selector: serde_json::Value) -> Vec<usize> {
        let things: Vec<Labels> = serde_json::from_value(json!([
            {"app": "web", "tier": "front"}, {"app": "db"}, {"tier": "front"}, {}
        ]))
        .expect("labels");
        let selector: LabelSelector = serde_json::from_value(selector).expect("a selector");
        let selector = Selector::read(&selector).expect("valid");
        let selected: Vec<_> = Index::of(things.iter()).select(&selector).iter().collect();
        let one_by_one = (0..things.len()).filter(|index| selector.matches(&things[*index]));
        assert_eq!(selected, one_by_one.collect::<Vec<_>>());
        selected
    }
    fn expression(key: &str, operator: &str, values: &[&str]) -> serde_json::Value {
        json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]})
    }

    #[test]
    fn a_selector_without_demands_names_everything() {
        assert_eq!(selected(json!({})), [0, 1, 2, 3]);
    }

    #[test]
    fn every_demand_must_hold() {
        assert_eq!(selected(json!({"matchLabels": {"app": "web", "tier": "front"}})), [0]);
        assert!(selected(json!({"matchLabels": {"app": "db", "tier": "front"}})).is_empty());
    }

    #[test]
    fn not_in_and_does_not_exist_hold_where_the_label_is_missing() {
        assert_eq!(selected(expression("app", "In", &["web", "db"])), [0, 1]);
        assert_eq!(selected(expression("app", "NotIn", &["web"])), [1, 2, 3]);
        assert_eq!(selected(expression("app", "Exists", &[])), [0, 1]);
        assert_eq!(selected(expression("app", "DoesNotExist", &[])), [2, 3]);
        assert!(selected(expression("unheard", "Exists", &[])).is_empty());
    }

    #[test]
    fn selectors_that_demand_the_same_are_equal() {
        let read =
            |value| Selector::read(&serde_json::from_value(value).expect("a selector")).expect("valid");
        assert_eq!(read(json!({"matchLabels": {"app": "web"}})), read(expression("app", "In", &["web"])));
        assert_eq!(read(expression("app", "In", &["a", "b"])), read(expression("app", "In", &["b", "a"])));
    }

    #[test]
    fn an_unknown_operator_is_named() {
        let selector = serde_json::from_value(expression("app", "Like", &[])).expect("a selector");
        assert!(Selector::read(&selector).expect_err("no such operator").contains("Like"));
    }
}
