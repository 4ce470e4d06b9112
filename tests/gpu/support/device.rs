use std::ops::Deref;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use wgpu_flash_attention::{
    Algorithm, AttentionProblem, Capabilities, Error, FlashAttention, PlanBuilder, PreparedBackward, PreparedForward,
    Tiles,
};

/// Panics without an adapter: a test that cannot run must not pass.
pub fn adapter() -> &'static wgpu::Adapter {
    static ADAPTER: OnceLock<wgpu::Adapter> = OnceLock::new();
    ADAPTER.get_or_init(|| {
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
        let options = wgpu::RequestAdapterOptions {
            power_preference: wgpu::PowerPreference::HighPerformance,
            ..Default::default()
        };
        let adapter = pollster::block_on(instance.request_adapter(&options))
            .expect("these tests need a GPU adapter; Mesa's software driver (Debian: mesa-vulkan-drivers) is enough");
        println!("adapter: {:?}", adapter.get_info());
        adapter
    })
}

/// A value on each of two devices. A software driver compiles on one thread per device, so tests that run at the same time
/// share no device if that can be; a GPU is one device.
struct Shared<T>([OnceLock<T>; 2]);

/// Tests that run now on either device.
static TESTS: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];

/// The device of a test, as long as its thread lives.
struct Place(usize);

impl Place {
    fn new() -> Self {
        let is_software = adapter().get_info().device_type == wgpu::DeviceType::Cpu;
        let [first, second] = TESTS.each_ref().map(|tests| tests.load(Ordering::Relaxed));
        let place = usize::from(is_software && second < first);
        TESTS[place].fetch_add(1, Ordering::Relaxed);
        Self(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        TESTS[self.0].fetch_sub(1, Ordering::Relaxed);
    }
}

impl<T> Shared<T> {
    const fn new() -> Self {
        Self([const { OnceLock::new() }; 2])
    }

    fn get_or_init(&self, make: impl FnOnce() -> T) -> &T {
        thread_local!(static PLACE: Place = Place::new());
        self.0[PLACE.with(|place| place.0)].get_or_init(make)
    }
}

/// The library on one device, perhaps with tiles of the test's choice.
#[derive(Clone)]
pub struct Library {
    attention: FlashAttention,
    /// For flash and for standard attention; without them the planner chooses.
    tiles: Option<[Tiles; 2]>,
    /// Likewise for dK and dV of flash attention, for its dQ, and for the gradients of standard attention.
    backward_tiles: Option<[Tiles; 3]>,
    /// For flash; without them the planner chooses.
    num_splits: Option<u32>,
}

impl Deref for Library {
    type Target = FlashAttention;

    fn deref(&self) -> &FlashAttention {
        &self.attention
    }
}

impl Library {
    /// A new device, with everything that the library can use.
    fn whole() -> Self {
        let attention = pollster::block_on(FlashAttention::from_adapter(adapter())).expect("the adapter has a device");
        Self { attention, tiles: None, backward_tiles: None, num_splits: None }
    }

    /// A new device with WebGPU's default limits and no feature.
    fn with_defaults() -> Self {
        let device = pollster::block_on(adapter().request_device(&wgpu::DeviceDescriptor::default()));
        let (device, queue) = device.expect("the adapter has a device");
        Self {
            attention: FlashAttention::new(adapter(), &device, &queue),
            tiles: None,
            backward_tiles: None,
            num_splits: None,
        }
    }

    fn checked(mut self) -> Self {
        self.attention = self.attention.with_checked_shaders(true);
        self
    }

    /// As if no binding could be longer.
    pub fn bind_at_most(&mut self, bytes: u64) {
        let mut capabilities = self.attention.capabilities().clone();
        capabilities.max_binding = bytes;
        self.attention = self.attention.clone().with_capabilities(capabilities);
    }

    /// Names what is recorded.
    pub fn labelled(&self, label: &str) -> Self {
        let mut labelled = self.clone();
        labelled.attention = labelled.attention.with_label(label);
        labelled
    }

    /// Splits the keys of flash problems.
    pub fn splits(mut self, num_splits: u32) -> Self {
        self.num_splits = Some(num_splits);
        self
    }

    pub fn tiles(mut self, flash: Tiles, standard: Tiles) -> Self {
        self.tiles = Some([flash, standard]);
        self
    }

    fn backward_tiles(mut self, dkdv: Tiles, dq: Tiles, standard: Tiles) -> Self {
        self.backward_tiles = Some([dkdv, dq, standard]);
        self
    }

    /// Plans and compiles the gradients of a problem.
    pub fn prepare_gradients(&self, problem: &AttentionProblem) -> Result<PreparedBackward, Error> {
        let tiles = self.backward_tiles.map(|[dkdv, dq, standard]| match problem.algorithm {
            Algorithm::Flash => vec![dkdv, dq],
            _ => vec![standard],
        });
        let plan = self.plan_backward(problem).with_tiles(&tiles.unwrap_or_default()).build()?;
        pollster::block_on(self.prepare_backward_plan(plan))
    }

    /// Plans and compiles a problem.
    pub fn prepare(&self, problem: &AttentionProblem) -> Result<PreparedForward, Error> {
        let is_flash = problem.algorithm == Algorithm::Flash;
        let tiles = self.tiles.map(|[flash, standard]| if is_flash { flash } else { standard });
        let plan = self.plan_forward(problem).with_tiles(tiles.as_slice());
        let splits = self.num_splits.filter(|_| is_flash);
        let plan = splits.into_iter().fold(plan, PlanBuilder::with_splits).build()?;
        pollster::block_on(self.prepare_forward_plan(plan))
    }
}

/// The library on cooperative matrices, also on a software driver, where the planner knows better: they are slow
/// there, but no GPU is needed to test them. `None`, and a line that says so, where the device has none.
pub fn with_matrices() -> Option<&'static Library> {
    static LIBRARY: Shared<Option<Library>> = Shared::new();
    let library = LIBRARY.get_or_init(|| {
        let Library { attention, .. } = Library::whole();
        let side = attention.capabilities().matrix_side?;
        let lanes = attention.capabilities().subgroup_min_size;
        let standard = Tiles::new(64, 32, 4, 8);
        let matrices = |tile_q, tile_kv, rows| Tiles::cooperative(tile_q, tile_kv, rows, lanes, side);
        let [tiles, dkdv, dq] = match side {
            16 => [matrices(64, 16, 16), matrices(32, 64, 16), matrices(64, 32, 32)],
            // A software driver compiles them for minutes: as few fragments as cover 256 head dimensions.
            _ => [matrices(64, 8, 8), matrices(16, 32, 8), matrices(32, 16, 16)],
        };
        let library = Library { attention, tiles: Some([tiles, standard]), backward_tiles: None, num_splits: None };
        Some(library.backward_tiles(dkdv, dq, standard))
    });
    if library.is_none() {
        println!("skipped: the device has no cooperative matrices");
    }
    library.as_ref()
}

/// The same device with all or only part of what it offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// As the library would use it: everything that the adapter has, shader modules without bounds checks.
    Full,
    /// f16 in storage, but not in the shader language.
    NoShaderF16,
    /// Rows are reduced through workgroup memory.
    NoSubgroups,
    /// A device like every browser's: default limits, no optional feature, bounds-checked shader modules.
    WebGpuDefaults,
    /// As the library would use it, but with bounds-checked shader modules.
    Checked,
    /// The smallest tiles, one lane to a row.
    SmallTiles,
    /// The largest tiles, several lanes to a row.
    LargeTiles,
}

impl Variant {
    pub const ALL: [Variant; 7] = [
        Variant::Full,
        Variant::NoShaderF16,
        Variant::NoSubgroups,
        Variant::WebGpuDefaults,
        Variant::Checked,
        Variant::SmallTiles,
        Variant::LargeTiles,
    ];

    /// Those that differ in the sides of their tiles.
    pub const TILES: [Variant; 3] = [Variant::Full, Variant::SmallTiles, Variant::LargeTiles];
}

/// The library on a variant of the device, made once, so that pipelines are compiled once. There are four devices: for all
/// abilities, all abilities with checked shader modules, browsers, and one that the remaining variants share.
pub fn library(variant: Variant) -> &'static Library {
    static VARIANTS: [Shared<Library>; Variant::ALL.len()] = [const { Shared::new() }; Variant::ALL.len()];
    VARIANTS[variant as usize].get_or_init(|| match variant {
        Variant::Full => Library::whole(),
        Variant::NoShaderF16 => limited(|capabilities| capabilities.shader_f16 = false),
        // Several lanes to a row, so that there is something to reduce.
        Variant::NoSubgroups => limited(|capabilities| capabilities.subgroups = false)
            .tiles(Tiles::new(64, 8, 2, 4), Tiles::new(64, 32, 4, 8))
            .backward_tiles(Tiles::new(8, 32, 2, 4), Tiles::new(32, 8, 2, 4), Tiles::new(64, 32, 4, 8)),
        Variant::WebGpuDefaults => Library::with_defaults().checked(),
        Variant::Checked => Library::whole().checked(),
        Variant::SmallTiles => limited(|_| ()).tiles(Tiles::new(32, 4, 1, 1), Tiles::new(16, 8, 4, 2)).backward_tiles(
            Tiles::new(1, 4, 1, 1),
            Tiles::new(8, 4, 1, 1),
            Tiles::new(16, 8, 4, 2),
        ),
        Variant::LargeTiles => limited(|_| ())
            .tiles(Tiles::new(128, 32, 2, 2), Tiles::new(128, 32, 4, 8))
            .backward_tiles(Tiles::new(32, 64, 4, 2), Tiles::new(96, 32, 3, 4), Tiles::new(64, 32, 4, 8)),
    })
}

/// The library as if the device had less than it has.
pub fn limited(change: impl FnOnce(&mut Capabilities)) -> Library {
    static BASE: Shared<Library> = Shared::new();
    let mut library = BASE.get_or_init(Library::whole).clone();
    let mut capabilities = library.capabilities().clone();
    change(&mut capabilities);
    library.attention = library.attention.with_capabilities(capabilities);
    library
}
