//! Label selectors as what they demand of each key: when one implies another, and when none can hold.
//!
//! What a selector demands of one key's value is a finite set of values, or all but a finite set, and whether
//! the key may be absent. Values that a key could have are without end, so implication is inclusion, key by
//! key, and exact.
//!
//! Source: Kubernetes, "Labels and Selectors".

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use userspace::model::Labels;

/// The label that every namespace has, with its own name.
pub(super) const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// What is demanded of one key.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Demand {
    /// The values it may have; all others if `except`.
    pub(super) values: BTreeSet<String>,
    /// `values` are those it may not have.
    pub(super) except: bool,
    /// The key may be absent.
    pub(super) absent: bool,
}

impl Demand {
    /// Nothing can be so.
    fn is_contradiction(&self) -> bool {
        !self.except && self.values.is_empty() && !self.absent
    }

    pub(super) fn holds(&self, value: Option<&str>) -> bool {
        value.map_or(self.absent, |value| self.values.contains(value) != self.except)
    }

    fn and(&self, other: &Self) -> Self {
        let keep = |from: &Self, by: &Self| {
            let values = from.values.iter().filter(|value| by.values.contains(*value) != by.except);
            values.cloned().collect()
        };
        let (values, except) = match (self.except, other.except) {
            (false, _) => (keep(self, other), false),
            (true, false) => (keep(other, self), false),
            (true, true) => (&self.values | &other.values, true),
        };
        Self { values, except, absent: self.absent && other.absent }
    }

    fn implies(&self, other: &Self) -> bool {
        let values = match (self.except, other.except) {
            (false, _) => self.values.iter().all(|value| other.holds(Some(value))),
            (true, true) => other.values.is_subset(&self.values),
            (true, false) => false,
        };
        values && (!self.absent || other.absent)
    }
}

/// A label selector in a normal form: selectors that demand the same are equal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Selector(pub(super) BTreeMap<String, Demand>);

impl Selector {
    /// Reads a selector that the model has validated.
    pub(super) fn read(selector: &LabelSelector) -> Self {
        let mut read = Self::default();
        for (key, value) in selector.match_labels.iter().flatten() {
            read.demand(key, Demand { values: [value.clone()].into(), except: false, absent: false });
        }
        for expression in selector.match_expressions.iter().flatten() {
            let values: BTreeSet<String> = expression.values.iter().flatten().cloned().collect();
            let demand = match expression.operator.as_str() {
                "In" => Demand { values, except: false, absent: false },
                "NotIn" => Demand { values, except: true, absent: true },
                "Exists" => Demand { values, except: true, absent: false },
                _ => Demand { values: BTreeSet::new(), except: false, absent: true },
            };
            read.demand(&expression.key, demand);
        }
        read
    }

    fn demand(&mut self, key: &str, demand: Demand) {
        let both = self.0.get(key).map_or_else(|| demand.clone(), |other| other.and(&demand));
        self.0.insert(key.to_owned(), both);
    }

    /// This, and the name of the namespace.
    pub(super) fn with_namespace(mut self, name: &str) -> Self {
        self.demand(
            NAMESPACE_NAME,
            Demand { values: [name.to_owned()].into(), except: false, absent: false },
        );
        self
    }

    /// It selects everything.
    pub(super) fn is_everything(&self) -> bool {
        self.0.is_empty()
    }

    /// The key of which two demands exclude each other, if there is one: it selects nothing, ever.
    pub(super) fn contradiction(&self) -> Option<&str> {
        self.0.iter().find(|(_, demand)| demand.is_contradiction()).map(|(key, _)| key.as_str())
    }

    pub(super) fn holds(&self, labels: &Labels) -> bool {
        self.0.iter().all(|(key, demand)| demand.holds(labels.get(key).map(String::as_str)))
    }

    /// Whether `other` selects everything that this does, whatever there is.
    pub(super) fn implies(&self, other: &Self) -> bool {
        let free = Demand { values: BTreeSet::new(), except: true, absent: true };
        self.contradiction().is_some()
            || other.0.iter().all(|(key, demand)| self.0.get(key).unwrap_or(&free).implies(demand))
    }

    /// The one namespace it names by its name, if it is a selector of namespaces that does.
    pub(super) fn only_namespace(&self) -> Option<&str> {
        let demand =
            self.0.get(NAMESPACE_NAME).filter(|demand| !demand.except && demand.values.len() == 1)?;
        demand.values.first().map(String::as_str)
    }
}

/// As `kubectl -l` writes it.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_everything() {
            return f.write_str("{}");
        }
        for (index, (key, demand)) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            let values = demand.values.iter().map(String::as_str).collect::<Vec<_>>().join(",");
            match (demand.except, demand.values.len(), demand.absent) {
                (false, 0, _) => write!(f, "!{key}")?,
                (false, 1, _) => write!(f, "{key}={values}")?,
                (false, ..) => write!(f, "{key} in ({values})")?,
                (true, 0, _) => write!(f, "{key}")?,
                (true, ..) => write!(f, "{key} notin ({values})")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(value: Value) -> Selector {
        Selector::read(&serde_json::from_value(value).expect("a selector"))
    }

    fn expression(key: &str, operator: &str, values: &[&str]) -> Value {
        json!({"key": key, "operator": operator, "values": values})
    }

    fn of(expressions: &[Value]) -> Selector {
        read(json!({"matchExpressions": expressions}))
    }

    #[test]
    fn demands_of_one_key_that_exclude_each_other_are_a_contradiction() {
        let values = ["a"];
        for pair in [
            [expression("k", "In", &values), expression("k", "NotIn", &values)],
            [expression("k", "Exists", &[]), expression("k", "DoesNotExist", &[])],
            [expression("k", "In", &values), expression("k", "In", &["b"])],
            [expression("k", "In", &values), expression("k", "DoesNotExist", &[])],
        ] {
            assert_eq!(of(&pair).contradiction(), Some("k"), "{pair:?}");
        }
        assert_eq!(of(&[expression("k", "NotIn", &values)]).contradiction(), None);
        assert_eq!(of(&[expression("k", "DoesNotExist", &[])]).contradiction(), None);
    }

    #[test]
    fn the_narrower_selector_implies_the_wider() {
        let one = read(json!({"matchLabels": {"app": "web", "tier": "front"}}));
        let app = read(json!({"matchLabels": {"app": "web"}}));
        let either = of(&[expression("app", "In", &["web", "db"])]);
        let not_db = of(&[expression("app", "NotIn", &["db"])]);
        let there = of(&[expression("app", "Exists", &[])]);
        for (narrow, wide) in [(&one, &app), (&app, &either), (&app, &not_db), (&app, &there), (&app, &app)] {
            assert!(narrow.implies(wide), "{narrow} {wide}");
        }
        for (wide, narrow) in [(&app, &one), (&either, &app), (&not_db, &there), (&there, &not_db)] {
            assert!(!wide.implies(narrow), "{wide} {narrow}");
        }
        assert!(there.implies(&Selector::default()) && !Selector::default().implies(&there));
    }

    #[test]
    fn selectors_are_printed_as_kubectl_writes_them() {
        let selector = of(&[
            expression("a", "In", &["x", "y"]),
            expression("b", "NotIn", &["z"]),
            expression("c", "Exists", &[]),
            expression("d", "DoesNotExist", &[]),
        ]);
        assert_eq!(selector.to_string(), "a in (x,y),b notin (z),c,!d");
    }
}
