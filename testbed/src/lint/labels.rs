//! Selectors that select nothing, or not all that they name; and the nearest labels there are.

use super::selector::{Demand, NAMESPACE_NAME, Selector};
use super::view::{Named, Policy, Who};
use super::world::{Index, Scope, World, count_of, some_of};
use super::{Check, Found};
use userspace::plan::Bits;

pub(super) fn look(world: &World<'_>, found: &mut Found<'_>) {
    let mut looker = Looker { world, found };
    for (place, policy) in looker.found.policies() {
        looker.subject(place, policy);
        for rule in &policy.rules {
            let alone = rule.ends.is_empty();
            for peer in &rule.peers {
                let so = if alone { ", so the rule matches nothing" } else { "" };
                let at = At { policy: place, field: &peer.field, so };
                match &peer.who {
                    Who::Pods(named) => {
                        let own = matches!(named.scope, Scope::Named(_));
                        looker.pods(&at, named, (own, peer.ends.is_empty()));
                    }
                    Who::Nodes(selector) => looker.nodes(&at, selector),
                    Who::Blocks(_) => {}
                }
            }
        }
    }
}

/// Where a selector stands, and what follows if it selects nothing.
struct At<'a> {
    policy: usize,
    field: &'a str,
    so: &'a str,
}

/// Things with labels, as a selector is asked about them.
struct Things<'w> {
    index: &'w Index<'w>,
    among: Bits,
    /// `pod of namespace shop`.
    noun: String,
}

struct Looker<'w, 'f, 'a> {
    world: &'w World<'w>,
    found: &'f mut Found<'a>,
}

impl Looker<'_, '_, '_> {
    /// Whom a policy is for.
    fn subject(&mut self, place: usize, policy: &Policy<'_>) {
        let network = policy.tier().is_none();
        let field = if network { "spec.podSelector" } else { "spec.subject" };
        let at = At { policy: place, field, so: ", so the policy does nothing" };
        let Named { scope, pods } = &policy.whom;
        if self.contradicts(&at, scope) || self.contradicts_itself(&at, pods) {
            return;
        }
        if !policy.subject.is_empty() {
            return self.values(&at, pods, &pods_of(self.world, scope));
        }
        let namespaces = self.world.namespaces_of(scope);
        let (own, host) = self.world.members(&namespaces);
        match scope {
            Scope::Labelled(selector) if namespaces.is_empty() => {
                self.nothing(&at, Check::SelectsNothing, selector, &all_namespaces(self.world));
            }
            _ if own.is_empty() && host.is_empty() => {
                let reason = format!("{} has no pods, so the policy does nothing", place_of(scope));
                let next = "create the pods, or put the policy into the namespace of those it is meant for";
                self.found.note(place, Check::SelectsNothing, field, (reason, next.into()));
            }
            _ => self.no_pods(&at, Check::SelectsNothing, scope, pods),
        }
    }

    /// A peer that is pods; of the policy's own namespace if `own`.
    fn pods(&mut self, at: &At<'_>, named: &Named, (own, nobody): (bool, bool)) {
        let Named { scope, pods } = named;
        let of_scope = At { field: &format!("{}.namespaceSelector", at.field), ..*at };
        let of_pods = At { field: &format!("{}.podSelector", at.field), ..*at };
        let (of_scope, of_pods) = match self.found.policies[at.policy].tier() {
            None => (&of_scope, &of_pods),
            Some(_) => (at, at),
        };
        if self.contradicts(of_scope, scope) || self.contradicts_itself(of_pods, pods) {
            return;
        }
        let namespaces = self.world.namespaces_of(scope);
        if let Scope::Labelled(selector) = scope {
            let all = all_namespaces(self.world);
            if namespaces.is_empty() {
                return self.nothing(of_scope, Check::NoSuchNamespace, selector, &all);
            }
            self.values(of_scope, selector, &all);
        }
        if !nobody {
            return self.values(of_pods, pods, &pods_of(self.world, scope));
        }
        let (members, host) = self.world.members(&namespaces);
        if members.is_empty() && host.is_empty() {
            let reason = format!("{} has no pods{}", place_of(scope), at.so);
            let next = "create the pods, or name the namespace where they are";
            let field = if own { of_pods.field } else { of_scope.field };
            return self.found.note(at.policy, Check::NoSuchPod, field, (reason, next.into()));
        }
        self.no_pods(of_pods, Check::NoSuchPod, scope, pods);
    }

    fn nodes(&mut self, at: &At<'_>, selector: &Selector) {
        let nodes = &self.world.cluster.nodes;
        if self.contradicts_itself(at, selector) {
            return;
        }
        if !nodes.iter().any(|node| selector.holds(&node.labels)) {
            let labels = nodes.iter().flat_map(|node| &node.labels);
            let known = some_of(labels.map(|(key, value)| format!("{key}={value}")), 0);
            let reason = format!("no node has {selector}{}", at.so);
            let next = if known.is_empty() {
                "give the nodes labels".to_owned()
            } else {
                format!("use labels that nodes have, like {known}")
            };
            self.found.note(at.policy, Check::NoSuchNode, at.field, (reason, next));
        }
    }

    fn contradicts(&mut self, at: &At<'_>, scope: &Scope) -> bool {
        match scope {
            Scope::Named(_) => false,
            Scope::Labelled(selector) => self.contradicts_itself(at, selector),
        }
    }

    fn contradicts_itself(&mut self, at: &At<'_>, selector: &Selector) -> bool {
        let Some(key) = selector.contradiction() else { return false };
        self.contradiction(at, selector, key);
        true
    }

    fn contradiction(&mut self, at: &At<'_>, selector: &Selector, key: &str) {
        let demands = selector.0.len();
        let among = if demands > 1 { format!(" (of its {demands} keys)") } else { String::new() };
        let reason = format!(
            "what is demanded of {key}{among} excludes itself: it selects nothing, whatever there is{}",
            at.so
        );
        let next = format!("write one demand of {key}: values in one `In` list are alternatives");
        self.found.note(at.policy, Check::ContradictorySelector, at.field, (reason, next));
    }

    /// No pod of these namespaces, which have pods, is selected.
    fn no_pods(&mut self, at: &At<'_>, check: Check, scope: &Scope, pods: &Selector) {
        let (_, host) = self.world.members(&self.world.namespaces_of(scope));
        let host = host.and(&self.world.host_labels.select(pods));
        if !host.is_empty() {
            let names = some_of(host.iter().map(|index| self.world.host_pods[index].id()), host.len());
            let reason = format!(
                "only pods of the host network have {pods} ({names}); they are their node, and no selector selects them{}",
                at.so
            );
            let next = "select nodes by address (ipBlock), or take the pods off the host network";
            return self.found.note(at.policy, Check::HostNetworkPod, at.field, (reason, next.into()));
        }
        self.nothing(at, check, pods, &pods_of(self.world, scope));
    }

    /// None of `things` is selected: says which demand nobody meets, and what is near it.
    fn nothing(&mut self, at: &At<'_>, check: Check, selector: &Selector, things: &Things<'_>) {
        let unmet = selector
            .0
            .iter()
            .find(|(key, demand)| things.index.meeting(key, demand, things.among.clone()).is_empty());
        let Some((key, demand)) = unmet else {
            let reason = format!("no {} has all of {selector} at once{}", things.noun, at.so);
            let next = "leave a demand out, or make two peers of it: items of a list are alternatives";
            return self.found.note(at.policy, check, at.field, (reason, next.into()));
        };
        let only = Selector([(key.clone(), demand.clone())].into());
        let labels = things.index.labels(&things.among);
        let near = near(key, demand, &labels);
        let hint = near.as_ref().map_or(String::new(), |near| format!(" (did you mean {near}?)"));
        let reason = format!("no {} has {only}{hint}{}", things.noun, at.so);
        let (check, next) = match near {
            Some(near) => (Check::LabelTypo, format!("write {near}")),
            None => (check, self.elsewhere(&only, selector, things)),
        };
        self.found.note(at.policy, check, at.field, (reason, next));
    }

    /// What to do where nothing near is there.
    fn elsewhere(&self, only: &Selector, selector: &Selector, things: &Things<'_>) -> String {
        if std::ptr::eq(things.index, &self.world.namespace_labels) {
            return match selector.only_namespace() {
                Some(name) => format!("create namespace {name}, or name one there is"),
                None => format!("label the namespaces that are meant with {only}"),
            };
        }
        let pods = self.world.labels.select(selector);
        let Some(first) = pods.iter().next() else {
            return format!("label the pods that are meant with {only}, or create them");
        };
        let namespace = &self.world.pods[first].namespace;
        let count = count_of(pods.len(), "pod");
        format!(
            "{count} of other namespaces would be selected (one in {namespace}): say which with namespaceSelector"
        )
    }

    /// Values that are nobody's, in a selector that selects somebody.
    fn values(&mut self, at: &At<'_>, selector: &Selector, things: &Things<'_>) {
        for (key, demand) in &selector.0 {
            for value in &demand.values {
                let one = Demand { values: [value.clone()].into(), except: false, absent: false };
                if !things.index.meeting(key, &one, things.among.clone()).is_empty() {
                    continue;
                }
                let labels = things.index.labels(&things.among);
                let near = labels.iter().filter(|(theirs, other, _)| {
                    theirs == key && !demand.values.contains(*other) && is_near(value, other)
                });
                let near = near.min_by_key(|(_, other, _)| distance(value, other));
                let noun = &things.noun;
                let (check, reason, next) = match near {
                    Some((_, other, _)) => (
                        Check::LabelTypo,
                        format!("no {noun} has {key}={value} (did you mean {key}={other}?)"),
                        format!("write {other}"),
                    ),
                    None if demand.except => continue,
                    None => (
                        Check::UnknownValue,
                        format!("no {noun} has {key}={value}, though others of its values are there"),
                        format!("leave {value} out, or label what is meant"),
                    ),
                };
                self.found.note(at.policy, check, at.field, (reason, next));
            }
        }
    }
}

fn all_namespaces<'w>(world: &'w World<'w>) -> Things<'w> {
    let among = Bits::below(world.namespaces.len());
    Things { index: &world.namespace_labels, among, noun: "namespace".into() }
}

fn pods_of<'w>(world: &'w World<'w>, scope: &Scope) -> Things<'w> {
    let (among, _) = world.members(&world.namespaces_of(scope));
    Things { index: &world.labels, among, noun: format!("pod of {}", place_of(scope)) }
}

fn place_of(scope: &Scope) -> String {
    match scope {
        Scope::Named(name) => format!("namespace {name}"),
        Scope::Labelled(selector) if selector.is_everything() => "the cluster".into(),
        Scope::Labelled(selector) => match selector.only_namespace() {
            Some(name) if selector.0.len() == 1 => format!("namespace {name}"),
            _ => format!("namespaces with {selector}"),
        },
    }
}

/// The label there is that is nearest to what is demanded: another value of the key, the value of a key much
/// like it, or the value under some other key.
fn near(key: &str, demand: &Demand, labels: &[(&str, &str, usize)]) -> Option<String> {
    let candidates = labels.iter().filter_map(|(theirs, value, count)| {
        let wanted = |near: &dyn Fn(&str) -> bool| demand.values.iter().any(|one| near(one));
        let cost = if *theirs == key {
            let best = demand.values.iter().filter(|one| is_near(one, value));
            best.map(|one| distance(one, value)).min().filter(|_| !demand.except)?
        } else if is_near(key, theirs) && (demand.except || wanted(&|one| one == *value)) {
            distance(key, theirs)
        } else if !demand.except
            && *theirs != NAMESPACE_NAME
            && wanted(&|one| one == *value)
            && same_word(key, theirs)
        {
            // After whatever is a slip of the pen.
            100
        } else {
            return None;
        };
        Some((cost, std::cmp::Reverse(*count), *theirs, *value))
    });
    let (_, _, theirs, value) = candidates.min()?;
    Some(format!("{theirs}={value}"))
}

/// `app` and `app.kubernetes.io/name`, `k8s-app` and `app`: keys that charts mix up.
fn same_word(one: &str, other: &str) -> bool {
    let words = |key: &str| -> Vec<String> {
        key.split(|c: char| !c.is_alphanumeric()).map(str::to_lowercase).collect()
    };
    let (one, other) = (words(one), words(other));
    one.iter().any(|word| word.len() > 2 && other.contains(word))
}

/// A slip of the pen: not more than a third of the letters wrong, and another case always; but another number is
/// another thing.
pub(super) fn is_near(name: &str, other: &str) -> bool {
    let numberless = |name: &str| name.replace(|c: char| c.is_ascii_digit(), "0");
    name.to_lowercase() == other.to_lowercase()
        || (distance(name, other) <= name.chars().count() / 3 && numberless(name) != numberless(other))
}

/// Letters to insert, remove, replace or swap with their neighbour (optimal string alignment).
pub(super) fn distance(one: &str, other: &str) -> usize {
    let (one, other): (Vec<char>, Vec<char>) = (one.chars().collect(), other.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=other.len()).collect();
    for i in 1..=one.len() {
        let mut row = vec![i; other.len() + 1];
        for j in 1..=other.len() {
            let replaced = last[j - 1] + usize::from(one[i - 1] != other[j - 1]);
            row[j] = replaced.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && one[i - 1] == other[j - 2] && one[i - 2] == other[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut last, row);
    }
    last[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_pen_is_near_and_another_word_is_not() {
        for (name, other) in
            [("wbe", "web"), ("frontedn", "frontend"), ("App", "app"), ("databse", "database")]
        {
            assert!(is_near(name, other), "{name} {other}");
        }
        for (name, other) in [("a", "b"), ("db", "da"), ("web", "api"), ("blue", "green"), ("web-1", "web-2")]
        {
            assert!(!is_near(name, other), "{name} {other}");
        }
    }

    #[test]
    fn distances_count_letters() {
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("wbe", "web"), 1);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
