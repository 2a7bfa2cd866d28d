//! libFuzzer's bytes → [`lb_fuzz::checksum`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lb_fuzz::checksum::run(bytes));
