//! Compiles `proto/**/*.proto` without protoc, and writes the descriptor set for reflection and JSON.

use std::path::PathBuf;

use prost::Message as _;

const FILES: [&str; 13] = [
    "vaultferry/control/v1/instance.proto",
    "vaultferry/control/v1/job.proto",
    "vaultferry/control/v1/lifecycle.proto",
    "vaultferry/control/v1/maintenance.proto",
    "vaultferry/control/v1/point.proto",
    "vaultferry/control/v1/policy.proto",
    "vaultferry/control/v1/restore.proto",
    "vaultferry/control/v1/source.proto",
    "vaultferry/control/v1/summary.proto",
    "vaultferry/control/v1/vault.proto",
    "vaultferry/plugin/v1/maintenance.proto",
    "vaultferry/plugin/v1/plugin.proto",
    "vaultferry/service/v1/service.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for file in FILES {
        println!("cargo:rerun-if-changed=proto/{file}");
    }
    let descriptors = protox::compile(FILES, ["proto"])?;
    let out_dir = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out_dir.join("descriptors.bin"), descriptors.encode_to_vec())?;
    let mut config = tonic_prost_build::Config::new();
    config.enable_type_names();
    tonic_prost_build::configure().compile_fds_with_config(descriptors, config)?;
    Ok(())
}
