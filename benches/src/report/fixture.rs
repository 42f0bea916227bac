//! Results that nobody measured: everything that a run can have, for the tests.

use crate::results::{Absent, Cost, Machine, Point, Program, Results, Sample, Stage, VERSION};

/// How many microseconds each variant takes for a round trip, relative to `routed`.
const VARIANTS: [(&str, f64); 9] = [
    ("ebpf", 0.93),
    ("emulator", 4.1),
    ("emulator/plain", 6.5),
    ("chains", 5.2),
    ("chains/plain", 8.3),
    ("iptables", 1.8),
    ("nftables", 1.48),
    ("routed", 1.0),
    ("wire", 0.64),
];
const ROUNDS: usize = 5;

/// Seven dataplanes, two of them with two ways of IO, at every kind of point.
pub(crate) fn rich() -> Results {
    let mut results = Results {
        version: VERSION,
        suite: "standard".to_owned(),
        seed: 7,
        rounds: ROUNDS,
        time_s: 1.0,
        machine: machine(),
        absent: vec![Absent {
            variant: "geneve".to_owned(),
            why: "cannot start it: <no such link> & \"nothing\" else".to_owned(),
        }],
        ..Results::default()
    };
    traffic(&mut results.samples);
    scaling(&mut results.samples);
    forwarding(&mut results.samples);
    // As one block takes them: every round goes through all points.
    results.samples.sort_by_key(|sample| sample.round);
    costs(&mut results);
    results
}

fn machine() -> Machine {
    Machine {
        kernel: "6.18.0-test".to_owned(),
        cpu: "Imagined <CPU> & Co".to_owned(),
        cpus: 2,
        memory_bytes: 8 << 30,
        commit: "0123456789ab".to_owned(),
        began_s: 1_790_000_000,
        took_s: 1234.0,
        steal_percent: 0.4,
        load: 0.5,
    }
}

/// From one pod to one of the other node, and the like.
fn traffic(samples: &mut Vec<Sample>) {
    for way in ["same-node", "other-node", "service", "node-port", "world"] {
        for (variant, slow) in VARIANTS.into_iter().filter(|(variant, _)| has(variant, way)) {
            let mut slow = slow;
            if way == "same-node" {
                slow *= 0.7;
            }
            for workload in ["TCP_RR", "UDP_RR", "TCP_CRR", "FIRST_PACKET"] {
                let base = if workload == "TCP_CRR" { 95.0 } else { 30.0 };
                let factor = if variant == "ebpf" && workload == "TCP_CRR" { 1.13 } else { slow };
                latencies(samples, variant, &point(workload, way, 1), base * factor);
            }
            if way == "other-node" {
                latencies(
                    samples,
                    variant,
                    &Point { connections: 32, ..point("TCP_RR", way, 1) },
                    400.0 * slow,
                );
                let offered = Point { rate_per_s: 10_000, ..point("TCP_RR", way, 1) };
                latencies(samples, variant, &offered, 34.0 * slow);
                let rates = [
                    ("TCP_STREAM", 0, "throughput_gbit_per_s", 9.0),
                    ("UDP_STREAM", 64, "received_kpps", 300.0),
                    ("UDP_STREAM", 1400, "received_kpps", 250.0),
                ];
                for (workload, size, figure, rate) in rates {
                    push(samples, variant, &point(workload, way, size), &[(figure, rate / slow)]);
                }
                let eight = Point { connections: 8, ..point("TCP_STREAM", way, 0) };
                push(samples, variant, &eight, &[("throughput_gbit_per_s", 14.0 / slow)]);
            }
        }
    }
}

/// `routed` and `wire` know no Services and no world.
fn has(variant: &str, way: &str) -> bool {
    let bare = matches!(variant, "routed" | "wire");
    !bare || way == "other-node" || (variant == "routed" && way == "same-node")
}

/// By the number of Services and of policies.
fn scaling(samples: &mut Vec<Sample>) {
    for (variant, slow) in VARIANTS.into_iter().filter(|(variant, _)| !matches!(*variant, "routed" | "wire"))
    {
        let linear =
            if matches!(variant, "iptables" | "chains" | "chains/plain") { 0.0008 } else { 0.000_001 };
        for services in [1, 100, 1000, 5000, 10_000] {
            let grown = 1.0 + linear * services as f64;
            if services > 1 {
                let crr = Point { services, ..point("TCP_CRR", "service", 1) };
                let factor = if variant == "ebpf" { 1.13 } else { slow };
                latencies(samples, variant, &crr, 95.0 * factor * grown);
            }
            let program = Point { services, ..point("PROGRAM", "memory", 0) };
            push(samples, variant, &program, &[("took_ms", 0.01 * slow * services as f64 + 2.0)]);
            let update = Point { services, ..point("UPDATE", "memory", 0) };
            let took = 40.0 * slow * grown;
            push(samples, variant, &update, &[("latency_us_p50", took), ("latency_us_p99", 3.0 * took)]);
            let memory = Point { services, ..point("MEMORY", "memory", 0) };
            push(samples, variant, &memory, &[("memory_bytes", 9e5 + 800.0 * services as f64)]);
        }
        for policies in [0, 10, 100, 1000] {
            let rr = Point { policies, ..point("TCP_RR", "other-node", 1) };
            latencies(samples, variant, &rr, 30.0 * slow * (1.0 + linear * policies as f64));
        }
        push(samples, variant, &point("BOOT", "memory", 0), &[("took_ms", 800.0 * slow)]);
    }
}

/// Frames pushed through.
fn forwarding(samples: &mut Vec<Sample>) {
    for services in [1, 1000] {
        let rates = [("bare", 820.0), ("emulator", 700.0), ("emulator/plain", 160.0), ("chains", 300.0)];
        for (variant, kpps) in rates {
            let forward = Point { services, ..point("FORWARD", "other-node", 64) };
            push(samples, variant, &forward, &[("received_kpps", kpps)]);
        }
        for (variant, kpps) in [("emulator", 6200.0), ("chains", 1900.0)] {
            let forward = Point { services, ..point("FORWARD", "memory", 64) };
            push(samples, variant, &forward, &[("received_kpps", kpps)]);
        }
    }
}

fn costs(results: &mut Results) {
    let kinds = [
        ("egress to a Service", "from_pod", &[(1, 172.0), (1024, 188.0), (65_536, 352.0)][..]),
        ("overlay ingress to a pod", "from_underlay", &[(1, 131.0), (1024, 149.0), (65_536, 280.0)]),
        ("new flow, egress", "from_pod", &[(65_536, 430.0)]),
        ("new flow, ingress", "from_underlay", &[(65_536, 390.0)]),
        ("policy deny", "from_pod", &[(1, 71.0)]),
    ];
    for (packet, program, flows) in kinds {
        for (flows, median_ns) in flows.iter().copied() {
            let (packet, program) = (packet.to_owned(), program.to_owned());
            results.costs.push(Cost { program, packet, flows, median_ns, quiet_ns: median_ns - 7.0 });
        }
    }
    let stages = ["parse", "service", "conntrack", "policy", "route", "nat", "overlay", "redirect"];
    let egress = [21.0, 12.0, 58.0, 0.0, 17.0, 22.0, 31.0, 11.0];
    let ingress = [24.0, 0.0, 52.0, 0.0, 14.0, 8.0, 19.0, 14.0];
    for (packet, ns) in [("egress to a Service", egress), ("overlay ingress to a pod", ingress)] {
        for source in ["test-run", "live"] {
            for (stage, ns) in stages.into_iter().zip(ns) {
                let ns = if source == "live" { 1.2 * ns } else { ns };
                let (packet, source, stage) = (packet.to_owned(), source.to_owned(), stage.to_owned());
                results.stages.push(Stage { packet, source, stage, ns, flows: 1024 });
            }
        }
    }
    for (name, verified, stack_bytes) in [("from_pod", 61_000, 496), ("from_underlay", 73_500, 488)] {
        results.programs.push(Program {
            name: name.to_owned(),
            instructions: verified / 9,
            verified,
            peak_states: 880,
            total_states: 3900,
            stack_bytes,
            load_us: 120_000,
        });
    }
}

fn point(workload: &str, way: &str, size_bytes: usize) -> Point {
    Point {
        workload: workload.to_owned(),
        way: way.to_owned(),
        size_bytes,
        connections: 1,
        services: 1,
        policies: 1,
        flows: 1,
        rate_per_s: 0,
    }
}

/// A variant whose round trips take so long, as an exponential tail above a floor.
fn latencies(samples: &mut Vec<Sample>, variant: &str, point: &Point, p50: f64) {
    let parts = [0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999, 0.9999];
    let at = |part: f64| p50 * (0.85 + 0.15 * -(1.0 - part).log2());
    let names = ["latency_us_p50", "latency_us_p99", "latency_us_p999", "transactions_per_s"];
    let values = [at(0.5), at(0.99), at(0.999), 1e6 * point.connections as f64 / p50];
    let figures: Vec<(&str, f64)> = names.into_iter().zip(values).collect();
    let first = samples.len();
    push(samples, variant, point, &figures);
    for sample in &mut samples[first..] {
        let swing = swing(sample.round, variant);
        sample.latencies_us = parts.map(|part| (part, swing * at(part))).to_vec();
    }
}

/// Every round of some figures.
fn push(samples: &mut Vec<Sample>, variant: &str, point: &Point, figures: &[(&str, f64)]) {
    for round in 0..ROUNDS {
        let figures = figures.iter().map(|(name, value)| ((*name).to_owned(), value * swing(round, variant)));
        samples.push(Sample {
            variant: variant.to_owned(),
            point: point.clone(),
            round,
            figures: figures.collect(),
            latencies_us: Vec::new(),
        });
    }
}

/// A few percent up and down: none in the middle round.
fn swing(round: usize, variant: &str) -> f64 {
    let step = 0.006 + 0.002 * (variant.len() % 4) as f64;
    1.0 + step * (round as f64 - (ROUNDS / 2) as f64)
}
