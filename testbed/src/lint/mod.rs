//! What is wrong, or not as it seems, with the policies of a set of objects. Nothing is run, nobody is asked.
//!
//! Each thing that is looked for is a [`Check`], with a name that stays, and is in one file:
//!
//! ```text
//! world    what there is, by label, address and port        set, selector: the arithmetic of it
//! view     every policy in one form, its rules as sets
//! judge    pods that no policy tells apart, and what they may do
//! labels   selectors that select nothing, and the nearest that would      blocks   ipBlocks
//! ports    ports that nobody has      traps    what YAML says and nobody means
//! redundant   policies and rules without which nothing would change       tiers    policies of the cluster
//! dns      names that can't be looked up      pairs    flows that one end allows, and the other does not
//! lines    the line of a field in the file that it was read from
//! ```

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use userspace::model::{Cluster, Objects};

mod blocks;
mod dns;
mod judge;
mod labels;
mod lines;
mod pairs;
mod ports;
mod redundant;
mod selector;
mod set;
mod tiers;
mod traps;
mod view;
mod world;

use judge::Judge;
use view::Policy;
use world::World;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing; it may well be meant so.
    Note,
    /// As the cluster is, the policy does not do what it seems to say.
    Warning,
    /// It can't do what it says, whatever the cluster is.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// Declares every check once: its name, how bad it is, and what it looks for.
macro_rules! checks {
    ($($check:ident = $slug:literal $severity:ident $sentence:literal;)+) => {
        /// Something that is looked for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Check {
            $(#[doc = $sentence] $check,)+
        }

        impl Check {
            /// Every one.
            pub const ALL: &'static [Check] = &[$(Check::$check),+];

            /// What it is called; this stays.
            pub const fn slug(self) -> &'static str {
                match self { $(Self::$check => $slug,)+ }
            }
            /// How bad it is.
            pub const fn severity(self) -> Severity {
                match self { $(Self::$check => Severity::$severity,)+ }
            }
            /// What it looks for.
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$check => $sentence,)+ }
            }
        }
    };
}

checks! {
    ContradictorySelector = "contradictory-selector" Error "A selector's demands of one key exclude each other: it selects nothing, ever.";
    UnlistedDirection = "unlisted-direction" Error "Rules of a direction that policyTypes does not list have no effect.";
    ExceptedBlock = "excepted-block" Error "An ipBlock's exceptions leave nothing of it.";
    LabelTypo = "label-typo" Warning "A selector names a label that nobody has, and there is one much like it.";
    SelectsNothing = "selects-nothing" Warning "A policy is for no pod that there is.";
    NoSuchPod = "no-such-pod" Warning "A rule is about pods of which there are none.";
    NoSuchNamespace = "no-such-namespace" Warning "A rule is about namespaces of which there are none.";
    NoSuchNode = "no-such-node" Warning "A rule is about nodes of which there are none.";
    HostNetworkPod = "host-network-pod" Warning "Only pods of the host network have the labels, and those are their node: no selector selects them.";
    UnknownValue = "unknown-value" Note "One of the values that a selector lists is nobody's; others are somebody's.";
    BlockOfPods = "block-of-pods" Warning "An ipBlock is about pods by their addresses, which change; not every dataplane matches pods by them.";
    BlockOnlyPods = "block-only-pods" Warning "An ipBlock holds pods only, and `ipBlocks: outside` takes pods out of it: it matches nothing.";
    BlockOfServices = "block-of-services" Warning "An ipBlock holds Services' addresses, which no policy sees: it is asked after translation.";
    BlockOfNodes = "block-of-nodes" Note "An ipBlock holds nodes: their host-network pods, and whoever comes by way of them.";
    WideBlock = "wide-block" Note "An ipBlock that is meant for the world holds pods or nodes of the cluster, too.";
    NoSuchPort = "no-such-port" Warning "A rule is about a port that none of its targets declares.";
    ProtocolMismatch = "protocol-mismatch" Warning "A rule's targets declare its port for another protocol only.";
    ServicePort = "service-port" Warning "A rule names a Service's port instead of its pods': policies are asked after translation.";
    NamedPortDiffers = "named-port-differs" Note "A named port is another number in one target than in another.";
    EqualEndPort = "equal-end-port" Note "An endPort that is the port itself has no effect.";
    EmptyList = "empty-list" Warning "An empty list of peers or ports restricts nothing: it matches everybody.";
    OrNotAnd = "or-not-and" Warning "Two items of a list are alternatives: namespaces, and beside them pods of the policy's own namespace.";
    OwnNamespaceOnly = "own-namespace-only" Warning "`podSelector: {}` alone means the policy's namespace, where there is no pod but those the policy is for.";
    EgressNotLimited = "egress-not-limited" Warning "`egress: []` without policyTypes limits nothing.";
    RedundantPolicy = "redundant-policy" Warning "Another policy says all that this one does, whatever pods there are.";
    RedundantRule = "redundant-rule" Warning "Another rule allows all that this one does, whatever pods there are.";
    CoveredNow = "covered-now" Note "As the pods are now, nothing would change without it; it might with others.";
    ShadowedRule = "shadowed-rule" Warning "An earlier rule of the same tier decides all that this one is about, whatever pods there are.";
    ShadowedNow = "shadowed-now" Note "As the pods are now, earlier rules of the same tier decide all that this one is about.";
    OverruledRule = "overruled-rule" Warning "Rules of the Admin tier decide all that a NetworkPolicy's rule would allow.";
    UnreachedBaseline = "unreached-baseline" Note "NetworkPolicies are for every pod that a Baseline policy is for, and decide before it.";
    EqualPriority = "equal-priority" Warning "Two policies of a tier and a priority contradict each other: which decides is left open.";
    BaselinePass = "baseline-pass" Warning "Nothing comes after the Baseline tier to pass to: the flow is allowed.";
    DnsEgress = "dns-egress" Warning "Pods that may go somewhere may not ask for names: DNS is forgotten.";
    DnsTcp = "dns-tcp" Note "Pods may ask for names over UDP, and not over TCP, which long answers need.";
    HalfOpen = "half-open" Warning "A rule lets somebody in, or out, whom their own policies at the other end do not.";
}

impl Check {
    /// The check with this name.
    pub fn of(slug: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|check| check.slug() == slug)
    }
}

/// Something that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The file that the object was read from.
    pub file: String,
    /// The field's line in it, or, where that isn't known, the object's; 0 where neither is.
    pub line: u64,
    /// `NetworkPolicy shop/api`.
    pub object: String,
    /// `spec.ingress[0].from[1].podSelector`.
    pub field: String,
    /// How bad it is.
    pub severity: Severity,
    /// [`Check::slug`].
    pub check: &'static str,
    /// What is so, and why it matters, as a sentence's beginning without a stop at its end.
    pub reason: String,
    /// What to do about it.
    pub next: String,
}

/// What was found in a set of objects: the document of `podpath lint -o json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// By object in the order of the policies, and by field.
    pub findings: Vec<Finding>,
    /// How many of them are errors.
    pub errors: usize,
    /// How many are warnings.
    pub warnings: usize,
    /// How many are notes.
    pub notes: usize,
}

impl Report {
    /// How bad the worst of it is.
    pub fn worst(&self) -> Option<Severity> {
        self.findings.iter().map(|finding| finding.severity).max()
    }

    /// Looks at the policies of these objects, which make this cluster, for whatever `wanted` wants.
    pub fn of(objects: &Objects, cluster: &Cluster, wanted: impl Fn(Check) -> bool) -> Self {
        let world = World::of(cluster);
        let policies = view::policies(objects, &world);
        let judge = Judge::of(&world, &policies);
        let mut found = Found { policies: &policies, list: Vec::new() };
        labels::look(&world, &mut found);
        blocks::look(&world, &mut found);
        ports::look(&world, &mut found);
        traps::look(&world, &mut found);
        redundant::look(&judge, &mut found);
        tiers::look(&judge, &mut found);
        dns::look(&judge, &mut found);
        pairs::look(&judge, &mut found);
        found.list.retain(|(_, check, _)| wanted(*check));
        found.list.sort_by_cached_key(|(place, check, finding)| (*place, natural(&finding.field), *check));
        let mut findings: Vec<Finding> = found.list.into_iter().map(|(_, _, finding)| finding).collect();
        lines::place(objects, &mut findings);
        let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
        let (errors, warnings, notes) =
            (count(Severity::Error), count(Severity::Warning), count(Severity::Note));
        Self { findings, errors, warnings, notes }
    }
}

/// A field's path in parts, so that `egress[10]` comes after `egress[9]`.
fn natural(field: &str) -> Vec<(String, usize)> {
    let parts = field.split('.').map(|part| match part.trim_end_matches(']').split_once('[') {
        Some((name, index)) => (name.to_owned(), index.parse().unwrap_or_default()),
        None => (part.to_owned(), 0),
    });
    parts.collect()
}

/// What has been found so far.
struct Found<'a> {
    policies: &'a [Policy<'a>],
    /// Each with the place of its policy.
    list: Vec<(usize, Check, Finding)>,
}

impl<'a> Found<'a> {
    /// Notes something about a field of the policy at a place.
    fn note(&mut self, policy: usize, check: Check, field: &str, (reason, next): (String, String)) {
        let Policy { object, origin, .. } = &self.policies[policy];
        let finding = Finding {
            file: origin.file.clone(),
            line: origin.line,
            object: object.clone(),
            field: field.to_owned(),
            severity: check.severity(),
            check: check.slug(),
            reason,
            next,
        };
        self.list.push((policy, check, finding));
    }

    fn policies(&self) -> impl Iterator<Item = (usize, &'a Policy<'a>)> + use<'a> {
        self.policies.iter().enumerate()
    }
}

/// Findings by object, in their order.
pub fn by_object(findings: &[Finding]) -> Vec<(&str, Vec<&Finding>)> {
    let mut places: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let mut objects: Vec<(&str, Vec<&Finding>)> = Vec::new();
    for finding in findings {
        let place = *places.entry((&finding.file, &finding.object)).or_insert_with(|| {
            objects.push((&finding.object, Vec::new()));
            objects.len() - 1
        });
        objects[place].1.push(finding);
    }
    objects
}
