// Lays the graph out; runs inside the page: `await page.evaluate(arrange, room)`.

// Nodes that show a picture or a text after a run: large enough for it from the start, or it would cover others.
const ROOM = {
  LoadImage: [290, 320], SaveImage: [320, 360], PreviewImage: [640, 300], PreviewAny: [320, 180],
  ImageCompare: [480, 460]
}

// Columns from left to right, each as wide as its widest node; what feeds a node stands just before it.
function arrange(room) {
  const nodes = app.graph.nodes
  const links = [...app.graph.links.values()]
  const column = new Map(nodes.map((node) => [node.id, 0]))
  for (let round = 0; round < nodes.length; round++)
    for (const link of links)
      column.set(link.target_id, Math.max(column.get(link.target_id), column.get(link.origin_id) + 1))
  for (const node of nodes) {
    const targets = links.filter((link) => link.origin_id === node.id).map((link) => column.get(link.target_id))
    const isFed = links.some((link) => link.target_id === node.id)
    if (!isFed && targets.length) column.set(node.id, Math.min(...targets) - 1)
    // Nodes 2.0 draws wider than the canvas measures.
    const [width, height] = room[node.type] || node.computeSize()
    node.setSize([Math.max(width, 290, 90 + 8 * node.title.length), Math.max(height, node.computeSize()[1])])
  }
  let x = 70
  for (let k = 0; k <= Math.max(...column.values()); k++) {
    const here = nodes.filter((node) => column.get(node.id) === k)
    let y = 100
    for (const node of here) {
      node.pos = [x, y]
      y += node.size[1] + 100
    }
    x += Math.max(...here.map((node) => node.size[0])) + 80
  }
}

module.exports = { arrange, ROOM }
