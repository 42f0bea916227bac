//! `make setup` asks with this what lacks of the eBPF toolchain, in the build step's own words.
//!
//! Standard output, for the script: nothing if it is complete, else `compiler`, or `linker LLVM`.
//! Standard error, for people: the parts found, or what lacks with everything that was looked for.

use std::process::ExitCode;

#[path = "../userspace/src/toolchain.rs"]
#[expect(dead_code, reason = "the crate uses the rest")]
mod toolchain;

use toolchain::Lacks;

fn main() -> ExitCode {
    match toolchain::find() {
        Ok(found) => {
            let (rustc, linker) = (&found.rustc, &found.linker);
            eprintln!(
                "eBPF toolchain: {} {}, {} {}",
                rustc.path.display(),
                rustc.version,
                linker.path.display(),
                linker.version
            );
            ExitCode::SUCCESS
        }
        Err(missing) => {
            match missing.lacks {
                Lacks::Compiler => println!("compiler"),
                Lacks::Linker { llvm } => println!("linker {llvm}"),
            }
            eprintln!("{missing}");
            ExitCode::FAILURE
        }
    }
}
