//! The kernels of the sparse methods of the example `talk` keep to what WebGPU promises, and reach every backend. No GPU.

use naga::valid::{Capabilities, ValidationFlags, Validator};
use naga::{AddressSpace, Module};

/// The text of a kernel with its sizes, as `examples/talk/methods/sparse.rs` makes it.
macro_rules! kernels {
    ($($name:literal),*) => { [$(($name, include_str!(concat!("../examples/talk/shaders/", $name, ".wgsl")))),*] };
}

const KERNELS: [(&str, &str); 16] = kernels!(
    "row_lengths",
    "nearest_column",
    "sort_count",
    "sort_scan",
    "sort_scatter",
    "gather",
    "reformer_combine",
    "routing_scores",
    "routing_top",
    "routing_marks",
    "routing_mean",
    "routing_centroids",
    "scatterbrain_rows",
    "scatterbrain_lse",
    "scatterbrain_scan",
    "scatterbrain_merge"
);

const PRODUCTS: &str = include_str!("../examples/talk/shaders/products.wgsl");
const ELEMENTS: [&str; 3] = [
    include_str!("../examples/talk/shaders/element_f32.wgsl"),
    include_str!("../examples/talk/shaders/element_f16.wgsl"),
    include_str!("../examples/talk/shaders/element_bf16.wgsl"),
];

#[test]
fn lines_are_short() {
    for (name, text) in KERNELS.into_iter().chain([("products", PRODUCTS)]) {
        let long = (1..).zip(text.lines()).find(|(_, line)| line.chars().count() > 120);
        assert!(long.is_none(), "{name}: {long:?}");
    }
}

#[test]
fn every_kernel_fits_webgpu_and_reaches_every_backend() {
    for (name, kernel) in KERNELS {
        for (element, [head_dim, flag]) in ELEMENTS.iter().zip([[256, 0], [40, 1], [4, 0]]) {
            // The largest sizes of workgroup memory.
            let sizes = format!("const HEAD_DIM = {head_dim}u;\nconst BUCKETS = 2048u;\nconst SORT_BLOCK = 1024u;\n");
            let flags = ["IS_SIGNED", "IS_UNIT", "IS_CAUSAL"].map(|name| format!("const {name} = {};\n", flag == 1));
            let products = if kernel.contains("products(") { PRODUCTS } else { "" };
            let text = [&sizes, "const CHUNK = 128u;\n", &flags.concat(), element, products, kernel].concat();
            check(name, &text);
        }
    }
}

fn check(name: &str, text: &str) {
    let module =
        naga::front::wgsl::parse_str(text).unwrap_or_else(|error| panic!("{name}: {}", error.emit_to_string(text)));
    let info = Validator::new(ValidationFlags::all(), Capabilities::SHADER_FLOAT16_IN_FLOAT32)
        .validate(&module)
        .unwrap_or_else(|error| panic!("{name}: {}", error.emit_to_string(text)));
    limits(name, &module);
    let options = naga::back::spv::Options { lang_version: (1, 3), ..Default::default() };
    naga::back::spv::write_vec(&module, &info, &options, None).unwrap_or_else(|error| panic!("{name}: {error}"));
    let options = naga::back::msl::Options { lang_version: (2, 4), ..Default::default() };
    naga::back::msl::write_string(&module, &info, &options, &naga::back::msl::PipelineOptions::default())
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    let options = naga::back::hlsl::Options { shader_model: naga::back::hlsl::ShaderModel::V6_2, ..Default::default() };
    let mut hlsl = String::new();
    naga::back::hlsl::Writer::new(&mut hlsl, &options, &naga::back::hlsl::PipelineOptions::default())
        .write(&module, &info, None)
        .unwrap_or_else(|error| panic!("{name}: {error}"));
}

/// What WebGPU promises: 16 KiB of workgroup memory, 256 invocations, 8 storage buffers.
fn limits(name: &str, module: &Module) {
    let mut layouter = naga::proc::Layouter::default();
    layouter.update(module.to_ctx()).expect("sizes");
    let workgroup = module.global_variables.iter().filter(|(_, variable)| variable.space == AddressSpace::WorkGroup);
    let bytes: u32 = workgroup.map(|(_, variable)| layouter[variable.ty].size.next_multiple_of(16)).sum();
    assert!(bytes <= 16_384, "{name}: {bytes} bytes of workgroup memory");
    let is_storage = |space: AddressSpace| matches!(space, AddressSpace::Storage { .. });
    let buffers = module.global_variables.iter().filter(|(_, variable)| is_storage(variable.space)).count();
    assert!(buffers <= 8, "{name}: {buffers} storage buffers");
    let invocations: u32 = module.entry_points.iter().map(|entry| entry.workgroup_size.iter().product::<u32>()).sum();
    assert!((64..=256).contains(&invocations), "{name}: {invocations} invocations");
}
