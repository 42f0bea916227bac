//! A line for every raw figure.

use std::fmt::Write;

use crate::results::{Point, Results};

const HEAD: &str = "round,variant,workload,way,size_bytes,connections,services,policies,flows,rate_per_s,figure,value,packet,program\n";

/// Every figure of every round with all that it is of; then what packets cost, what each stage adds, and what the
/// verifier says, under the same head: `COST`, `STAGE` and `VERIFIER` in the column of workloads.
pub fn csv(results: &Results) -> String {
    let mut text = String::from(HEAD);
    for sample in &results.samples {
        let Point { workload, way, size_bytes, connections, services, policies, flows, rate_per_s } =
            &sample.point;
        let of = [&sample.variant, workload, way].map(|word| field(word)).join(",");
        let sizes = [size_bytes, connections, services, policies, flows].map(usize::to_string).join(",");
        for (figure, value) in &sample.figures {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{},{of},{sizes},{rate_per_s},{},{value},,", sample.round, field(figure));
        }
    }
    for cost in &results.costs {
        let (flows, packet, program) = (cost.flows, field(&cost.packet), field(&cost.program));
        for (figure, value) in [("median_ns", cost.median_ns), ("quiet_ns", cost.quiet_ns)] {
            let _ = writeln!(text, ",ebpf,COST,,,,,,{flows},,{figure},{value},{packet},{program}");
        }
    }
    for stage in &results.stages {
        let (source, name, packet) = (field(&stage.source), field(&stage.stage), field(&stage.packet));
        let (flows, ns) = (stage.flows, stage.ns);
        let _ = writeln!(text, ",ebpf,STAGE,{source},,,,,{flows},,{name}_ns,{ns},{packet},");
    }
    for program in &results.programs {
        for (figure, value) in [
            ("instructions", program.instructions),
            ("verified", program.verified),
            ("peak_states", program.peak_states),
            ("total_states", program.total_states),
            ("stack_bytes", program.stack_bytes),
            ("load_us", program.load_us),
        ] {
            let _ = writeln!(text, ",ebpf,VERIFIER,,,,,,,,{figure},{value},,{}", field(&program.name));
        }
    }
    text
}

/// A field, quoted where it must be (RFC 4180).
fn field(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixture::rich;
    use crate::results::tests::results;

    #[test]
    fn every_raw_figure_has_a_line_with_all_that_it_is_of() {
        let text = csv(&results());
        assert_eq!(text.lines().count(), 1 + 12, "{text}");
        assert!(text.contains("\n2,chains,TCP_RR,other-node,1,1,1,1,1,0,latency_us_p50,90,,\n"), "{text}");
    }

    #[test]
    fn every_line_has_as_many_fields_as_the_head() {
        let text = csv(&rich());
        let fields = |line: &str| {
            // Commas inside of quotes part nothing.
            let outside = line.split('"').step_by(2);
            outside.map(|part| part.matches(',').count()).sum::<usize>() + 1
        };
        let wrong: Vec<&str> = text.lines().filter(|line| fields(line) != fields(HEAD)).collect();
        assert!(wrong.is_empty(), "{wrong:?}");
        assert!(text.contains(",COST,,,,,,65536,,median_ns,"), "{text}");
        assert!(text.contains(",\"new flow, egress\",from_pod\n"), "{text}");
        assert!(text.contains(",VERIFIER,,,,,,,,verified,"), "{text}");
    }
}
