//! The embedded eBPF object, against this kernel's verifier.

use aya::Ebpf;
use aya::programs::{Program, ProgramError};
use userspace::engine::kernel::object::OBJECT;

/// Loads one program; which maps and which kind of program it is, the object tells.
fn load(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::SchedClassifier(program) => program.load(),
        Program::Xdp(program) => program.load(),
        Program::CgroupSock(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        other => panic!("no hook of the packet path is a {:?} program: load it here too", other.prog_type()),
    }
}

/// Prints how many instructions the verifier walked for each: a number to watch, for its limit is one million.
#[test]
#[ignore = "needs root: make test"]
fn every_program_passes_the_verifier() {
    let bytes = OBJECT.unwrap_or_else(|missing| panic!("{missing}"));
    let mut loaded = Ebpf::load(bytes).unwrap_or_else(|error| panic!("cannot load the object: {error:?}"));
    let mut names: Vec<String> = loaded.programs().map(|(name, _)| name.to_owned()).collect();
    names.sort();
    assert!(!names.is_empty(), "the object has no program");
    for name in names {
        let program = loaded.program_mut(&name).expect("the object just named it");
        load(program).unwrap_or_else(|error| panic!("the verifier refused {name}: {error}"));
        let info = program.info().unwrap_or_else(|error| panic!("cannot ask about {name}: {error}"));
        let verified =
            info.verified_instruction_count().map_or("unknown".to_owned(), |count| count.to_string());
        let size = info.size_translated().map_or("unknown".to_owned(), |bytes| (bytes / 8).to_string());
        println!("{name}: {size} instructions, {verified} verified");
    }
}
