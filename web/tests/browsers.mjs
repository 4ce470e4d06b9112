// Chromium and Firefox, headless, as the tests see them: one page each, and what it has to complain about.
import { execFileSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { chromium } from 'playwright-core';
import puppeteer from 'puppeteer-core';

const root = fileURLToPath(new URL('../..', import.meta.url));
const driver = `${root}target/software-vulkan`;

/** The environment in which programs find Mesa 25's software Vulkan driver. */
export const softwareVulkan = {
  ...process.env,
  VK_DRIVER_FILES: `${driver}/lavapipe.json`,
  LD_LIBRARY_PATH: `${driver}/libraries`,
  XDG_RUNTIME_DIR: process.env.XDG_RUNTIME_DIR ?? '/tmp',
};

function installed(program) {
  return execFileSync('sh', ['-c', `command -v ${program}`], { encoding: 'utf8' }).trim();
}

/** Collects errors and warnings of the page: the console's, exceptions, and what could not be loaded. */
function watch(page, complaints) {
  page.on('console', (message) => {
    if (['error', 'warn', 'warning', 'assert'].includes(message.type())) complaints.push(`${message.type()}: ${message.text()}`);
  });
  page.on('pageerror', (error) => complaints.push(`exception: ${error.message}`));
}

/** WebGPU on SwiftShader, Chromium's own software driver: f32, subgroups of 4, no shader-f16. */
async function openChromium({ width, height, colorScheme } = {}) {
  const browser = await chromium.launch({
    executablePath: installed('chromium'),
    args: ['--no-sandbox', '--enable-unsafe-webgpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
      '--disable-component-update', '--disable-sync'],
  });
  const context = await browser.newContext({ viewport: { width: width ?? 1280, height: height ?? 900 }, colorScheme: colorScheme ?? 'light' });
  const page = await context.newPage();
  const complaints = [];
  watch(page, complaints);
  return {
    page,
    complaints,
    close: () => browser.close(),
    show: ({ width, height = 900, colorScheme = 'light' }) =>
      Promise.all([page.setViewportSize({ width, height }), page.emulateMedia({ colorScheme })]),
  };
}

/** WebGPU on Mesa's software driver: f32, shader-f16, no subgroups. */
async function openFirefox() {
  const browser = await puppeteer.launch({
    browser: 'firefox',
    executablePath: installed('firefox-esr'),
    env: softwareVulkan,
    protocolTimeout: 600_000,
    defaultViewport: { width: 1280, height: 900 },
    extraPrefsFirefox: {
      'dom.webgpu.enabled': true,
      'gfx.webgpu.ignore-blocklist': true,
      'gfx.webgpu.force-enabled': true,
    },
  });
  const page = await browser.newPage();
  const complaints = [];
  watch(page, complaints);
  return {
    page,
    complaints,
    close: () => browser.close(),
    show: ({ width, height = 900 }) => page.setViewport({ width, height }),
  };
}

export const browsers = { chromium: openChromium, firefox: openFirefox };
