// ComfyUI's real frontend in headless Chromium, ready to be asked.
// playwright-core is found through NODE_PATH, Chromium through CHROMIUM (default: /usr/bin/chromium).
const fs = require('fs')
const os = require('os')
const path = require('path')
const { chromium } = require('playwright-core')

const READY_MS = 300000 // a machine may be busy with other tests

// with(url, { locale, vue }, work): opens the page in a fresh profile, awaits work(page), closes; adds page errors.
async function withPage(url, { locale = 'en', vue = false } = {}, work) {
  const profile = fs.mkdtempSync(path.join(os.tmpdir(), 'teasr-chromium-'))
  const context = await chromium.launchPersistentContext(profile, {
    executablePath: process.env.CHROMIUM || '/usr/bin/chromium',
    headless: true,
    viewport: { width: 1600, height: 900 },
    deviceScaleFactor: Number(process.env.PIXEL_RATIO || 1), // 2: screenshots that can be read when they are printed
    args: ['--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking', '--disable-sync']
  })
  try {
    const page = context.pages()[0] || (await context.newPage())
    page.setDefaultTimeout(READY_MS)
    const errors = []
    page.on('pageerror', (error) => errors.push(String(error)))
    // Nothing but the server: a test must not depend on the internet.
    await page.route('**/*', (route) => (route.request().url().startsWith(url) ? route.continue() : route.abort()))
    await page.goto(url, { timeout: READY_MS })
    await ready(page)
    // Settings live on the server: each run sets all that it depends on.
    const reload = await page.evaluate(async ([locale, vue]) => {
      const { setting } = app.extensionManager
      const before = setting.get('Comfy.Locale')
      await setting.set('Comfy.Locale', locale)
      await setting.set('Comfy.TutorialCompleted', true)
      await setting.set('LiteGraph.Canvas.MinFontSizeForLOD', 0)
      await setting.set('Comfy.VueNodes.Enabled', vue)
      await setting.set('Comfy.RightSidePanel.IsOpen', false)
      await setting.set('Comfy.Minimap.Visible', false)
      await setting.set('Comfy.Graph.CanvasInfo', false)
      await setting.set('Comfy.Graph.CanvasMenu', false)
      return before !== locale
    }, [locale, vue])
    if (reload) {
      await page.reload({ timeout: READY_MS })
      await ready(page)
    }
    return { ...(await work(page)), errors }
  } finally {
    await context.close()
    fs.rmSync(profile, { recursive: true, force: true })
  }
}

async function ready(page) {
  await page.waitForFunction(
    () => window.app?.graph && window.app.extensionManager && Object.keys(LiteGraph.registered_node_types).length > 50,
    null, { timeout: READY_MS }
  )
}

// Loads a UI graph into the canvas and waits until it is drawn.
async function load(page, graph) {
  await page.evaluate(async (graph) => {
    await app.loadGraphData(graph)
    await app.extensionManager.command.execute('Comfy.Canvas.FitView')
    await new Promise((resolve) => setTimeout(resolve, 1500))
  }, graph)
}

// Does `press` (which queues the workflow) and waits for the run: its end, and the pictures each node showed.
async function run(page, press) {
  const ended = page.evaluate(() => new Promise((resolve) => {
    const outputs = {}
    const note = ({ detail }) => { outputs[detail.display_node || detail.node] = detail.output }
    app.api.addEventListener('executed', note)
    for (const event of ['execution_success', 'execution_error', 'execution_interrupted'])
      app.api.addEventListener(event, (message) => {
        app.api.removeEventListener('executed', note)
        resolve({ event, detail: message.detail, outputs })
      }, { once: true })
  }))
  await press()
  const result = await ended
  await page.waitForTimeout(2500) // the pictures are drawn
  return result
}

module.exports = { withPage, load, run }
