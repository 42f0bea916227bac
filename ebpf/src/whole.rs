//! What every object needs to be whole: an answer to panics, and a license.

/// Never reached: a panic that can happen is a loop without end, and the verifier refuses it.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
