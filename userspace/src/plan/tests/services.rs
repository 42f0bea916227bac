//! Services, and what changes of them.

use std::collections::BTreeSet;

use dataplane::tables::Slots;

use super::super::{Error, FrontendKey, Plan};
use super::*;

const DNS: &str = "10.96.0.10";
const API: &str = "10.96.0.20";

fn rows_of(plan: &Plan, cluster: &Cluster) -> Rows<V4> {
    plan.node("n1", &links(cluster)).expect("n1 is there").rows.v4
}

#[test]
fn every_backend_answers_and_nobody_else() {
    let mut cluster = cluster(1);
    service(&mut cluster, DNS, 53, &["10.244.0.2:5353", "10.244.0.3:5353", "10.244.0.3:5353"]);
    let rows = planned(&cluster, "n1").rows.v4;
    let slots = answering(&rows, DNS, 53);
    assert_eq!(slots.len(), 251);
    let answering: BTreeSet<_> = slots.iter().map(String::as_str).collect();
    assert_eq!(answering, BTreeSet::from(["10.244.0.2:5353", "10.244.0.3:5353"]));
    assert_eq!(rows.backends.len(), 3, "number 0 is nobody's");
}

#[test]
fn a_service_without_backends_has_a_frontend_without_slots() {
    let mut cluster = cluster(1);
    service(&mut cluster, DNS, 53, &[]);
    let rows = planned(&cluster, "n1").rows.v4;
    let key = FrontendKey { address: v4(DNS), port: 53, protocol: TCP };
    assert_eq!(rows.frontends[&key].internal.count, 0);
    assert!(rows.maglev.is_empty() && rows.backends.is_empty());
}

#[test]
fn frontends_with_the_same_backends_share_their_slots() {
    let mut cluster = cluster(1);
    let backends = ["10.244.0.2:5353", "10.244.0.3:5353"];
    service(&mut cluster, DNS, 53, &backends);
    service(&mut cluster, API, 53, &[backends[1], backends[0]]);
    let rows = planned(&cluster, "n1").rows.v4;
    assert_eq!(rows.maglev.len(), 251);
    assert_eq!(answering(&rows, DNS, 53), answering(&rows, API, 53));
}

#[test]
fn ipv6_services_and_backends_are_left_out() {
    let mut cluster = cluster(1);
    service(&mut cluster, "2001:db8::10", 53, &["10.244.0.2:53"]);
    service(&mut cluster, DNS, 53, &["[2001:db8::2]:53", "10.244.0.3:53"]);
    let rows = planned(&cluster, "n1").rows.v4;
    assert_eq!((rows.frontends.len(), answering(&rows, DNS, 53)), (1, vec!["10.244.0.3:53".to_owned()]));
}

#[test]
fn services_are_the_same_on_every_node_and_whatever_their_order() {
    let mut cluster = cluster(2);
    service(&mut cluster, DNS, 53, &["10.244.0.2:53", "10.244.0.3:53", "10.244.1.3:53"]);
    service(&mut cluster, API, 80, &["10.244.0.2:80", "10.244.0.3:80"]);
    let (one, two) = (planned(&cluster, "n1").rows.v4, planned(&cluster, "n2").rows.v4);
    cluster.services.reverse();
    cluster.services.iter_mut().for_each(|service| service.ports[0].backends.reverse());
    let reversed = planned(&cluster, "n1").rows.v4;
    for other in [two, reversed] {
        assert_eq!((&one.frontends, &one.maglev), (&other.frontends, &other.maglev));
        assert_eq!(one.backends, other.backends);
    }
}

#[test]
fn what_did_not_change_keeps_its_numbers_and_its_slots() {
    let mut cluster = cluster(1);
    service(&mut cluster, DNS, 53, &["10.244.0.2:53", "10.244.0.3:53"]);
    service(&mut cluster, API, 80, &["10.244.0.4:80", "10.244.0.5:80"]);
    let before = Plan::of(&cluster).expect("it can be planned");
    cluster.services[0].ports[0].backends.remove(0);
    cluster.services[0].ports[0].backends.push(model::Backend::new(ip("10.244.0.1"), 53));
    let after = before.after(&cluster).expect("it can be planned");
    let (old, new) = (rows_of(&before, &cluster), rows_of(&after, &cluster));
    let api = FrontendKey { address: v4(API), port: 80, protocol: TCP };
    let slots = new.frontends[&api].internal;
    assert_eq!(old.frontends[&api].internal, slots);
    let run = slots.first as usize..(slots.first + slots.count) as usize;
    assert_eq!(old.maglev[run.clone()], new.maglev[run]);
    assert_eq!(old.backends[..5], new.backends[..5], "the row of who left stays until its number is needed");
    assert_eq!(name(&new.backends[5]), "10.244.0.1:53");
    assert_eq!(
        new.frontends[&FrontendKey { address: v4(DNS), port: 53, protocol: TCP }].internal,
        Slots { first: 502, count: 251 }
    );
}

#[test]
fn room_that_was_given_up_is_used_again_one_plan_later() {
    let mut cluster = cluster(1);
    service(&mut cluster, DNS, 53, &["10.244.0.2:53", "10.244.0.3:53"]);
    let mut plan = Plan::of(&cluster).expect("it can be planned");
    for round in 0..20 {
        cluster.services[0].ports[0].backends[0].port = 1000 + round;
        plan = plan.after(&cluster).expect("it can be planned");
        let rows = rows_of(&plan, &cluster);
        let answering: BTreeSet<_> = answering(&rows, DNS, 53).into_iter().collect();
        assert!(answering.contains(&format!("10.244.0.2:{}", 1000 + round)), "{answering:?}");
        assert!(
            rows.maglev.len() <= 502 && rows.backends.len() <= 5,
            "{} {}",
            rows.maglev.len(),
            rows.backends.len()
        );
    }
}

#[test]
fn more_slots_than_the_table_holds_are_refused_by_name() {
    let mut cluster = cluster(1);
    for index in 0..16 {
        let backends: Vec<_> = (0..700)
            .map(|place| format!("10.244.{}.{}:{}", place / 250, place % 250 + 1, 80 + index))
            .collect();
        let backends: Vec<_> = backends.iter().map(String::as_str).collect();
        service(&mut cluster, &format!("10.96.1.{index}"), 80, &backends);
    }
    let error = Plan::of(&cluster).expect_err("too many");
    assert!(
        matches!(error, Error::TableFull { table: "maglev", needed: 2_097_136, capacity: 1_048_576, .. }),
        "{error}"
    );
}

#[test]
fn a_plan_without_room_for_new_runs_beside_the_old_starts_again() {
    let mut cluster = cluster(1);
    let backends: Vec<_> =
        (0..700).map(|place| format!("10.244.{}.{}:80", place / 250, place % 250 + 1)).collect();
    let backends: Vec<_> = backends.iter().map(String::as_str).collect();
    for index in 0..5 {
        service(&mut cluster, &format!("10.96.1.{index}"), 80, &backends[index..]);
    }
    let mut plan = Plan::of(&cluster).expect("it can be planned");
    for service in &mut cluster.services {
        service.ports[0].backends.truncate(690);
    }
    plan = plan.after(&cluster).expect("it can be planned");
    let rows = rows_of(&plan, &cluster);
    assert!(rows.maglev.len() <= 5 * 131_071);
    assert_eq!(answering(&rows, "10.96.1.3", 80).into_iter().collect::<BTreeSet<_>>().len(), 690);
}
