import java.awt.Color;
import java.awt.RenderingHints;
import java.awt.image.BufferedImage;
import java.io.File;
import java.util.Arrays;
import java.util.List;
import java.util.TreeMap;
import qupath.lib.images.servers.ImageServer;
import qupath.lib.images.servers.ImageServerBuilder;
import qupath.lib.images.servers.bioformats.BioFormatsServerBuilder;
import qupath.lib.images.servers.openslide.OpenslideServerBuilder;
import qupath.lib.images.servers.openslide.jna.OpenSlideLoader;
import qupath.lib.io.PathIO;
import qupath.lib.io.PathIO.GeoJsonExportOptions;
import qupath.lib.objects.PathObject;
import qupath.lib.regions.RegionRequest;

/**
 * What QuPath's own code makes of the results of `stedm segment`: does it open the slide and the label map, and does each
 * pixel of the label map lie in the outlines of its class, and in no others, once QuPath has read them?
 *
 * Written for QuPath 0.5.1 and Java 17, without its window; JARS are JTS, Gson, Commons Math, Guava, SLF4J, picocli, JNA,
 * ImageJ and Bio-Formats' bioformats_package.jar. Only QuPath's readers are compiled:
 *
 *     git clone --branch v0.5.1 https://github.com/qupath/qupath && cd qupath
 *     javac -d out -cp JARS $(find qupath-core/src/main/java qupath-extension-openslide/src/main/java/qupath/lib \
 *       qupath-extension-bioformats/src/main/java/qupath/lib/images/servers/bioformats \
 *       -name '*.java' ! -name module-info.java ! -name BioFormatsOptionsExtension.java)
 *     javac -d out -cp out:JARS QuPathCheck.java
 *     java -cp out:JARS QuPathCheck SLIDE LABELS.tif OUTLINES.geojson SLIDE_MPP background,stroma,epithelium OUT.geojson
 */
public class QuPathCheck {

    /** Arguments: slide, label map, outlines, microns per pixel of the slide, classes in order, file to export to. */
    public static void main(String[] args) throws Exception {
        OpenSlideLoader.tryToLoad("/usr/lib/x86_64-linux-gnu");
        open(args[0], new OpenslideServerBuilder());
        var labelMap = open(args[1], new BioFormatsServerBuilder());
        var objects = PathIO.readObjects(new File(args[2]));
        var slideMpp = Double.parseDouble(args[3]);
        describe(objects, slideMpp);
        var scale = slideMpp / labelMap.getPixelCalibration().getPixelWidthMicrons();
        compare(labelMap, objects, Arrays.asList(args[4].split(",")), scale);
        PathIO.exportObjectsAsGeoJSON(new File(args[5]), objects, GeoJsonExportOptions.FEATURE_COLLECTION);
    }

    /** The image as QuPath opens it, and how much its two readers would like to. */
    private static ImageServer<BufferedImage> open(String path, ImageServerBuilder<BufferedImage> builder)
        throws Exception {
        var uri = new File(path).toURI();
        System.out.println(new File(path).getName());
        for (var bidder : List.of(new OpenslideServerBuilder(), new BioFormatsServerBuilder()))
            System.out.printf("  %s bids %s%n", bidder.getName(), bidder.checkImageSupport(uri).getSupportLevel());
        var server = builder.buildServer(uri);
        System.out.printf("  opened by %s: %d x %d px, %s, downsamples %s%n", server.getServerType(), server.getWidth(),
            server.getHeight(), server.getPixelCalibration(), Arrays.toString(server.getPreferredDownsamples()));
        return server;
    }

    private static void describe(List<PathObject> objects, double slideMpp) {
        var found = new TreeMap<String, double[]>(); // class: objects, mm2
        for (var object : objects) {
            var sums = found.computeIfAbsent(object + " of " + object.getPathClass(), name -> new double[2]);
            sums[0] += 1;
            sums[1] += object.getROI().getArea() * slideMpp * slideMpp / 1e6;
        }
        found.forEach((name, sums) -> System.out.printf("%s: %.0f, %.6f mm2%n", name, sums[0], sums[1]));
    }

    /** Counts the pixels of the label map by the class whose outlines their centres lie in. */
    private static void compare(ImageServer<BufferedImage> labelMap, List<PathObject> objects, List<String> classes,
        double scale) throws Exception {
        int width = labelMap.getWidth(), height = labelMap.getHeight();
        var labels = labelMap.readRegion(RegionRequest.createInstance(labelMap.getPath(), 1, 0, 0, width, height))
            .getRaster().getSamples(0, 0, width, height, 0, (int[]) null);
        var outlines = new int[width * height]; // in the outlines of so many classes
        var own = new boolean[width * height]; // in those of its own
        for (var name : classes) {
            var drawn = new BufferedImage(width, height, BufferedImage.TYPE_BYTE_GRAY);
            var graphics = drawn.createGraphics();
            graphics.setRenderingHint(RenderingHints.KEY_STROKE_CONTROL, RenderingHints.VALUE_STROKE_PURE);
            graphics.scale(scale, scale);
            graphics.setColor(Color.WHITE);
            for (var object : objects)
                if (name.equals(object.getPathClass().toString()))
                    graphics.fill(object.getROI().getShape());
            var inside = drawn.getRaster().getSamples(0, 0, width, height, 0, (int[]) null);
            for (int i = 0; i < inside.length; i++) {
                outlines[i] += inside[i] > 0 ? 1 : 0;
                own[i] |= inside[i] > 0 && labels[i] == classes.indexOf(name);
            }
        }
        int right = 0, empty = 0;
        for (int i = 0; i < labels.length; i++) {
            boolean labelled = labels[i] < classes.size();
            right += labelled && own[i] && outlines[i] == 1 ? 1 : 0;
            empty += !labelled && outlines[i] == 0 ? 1 : 0;
        }
        System.out.printf("pixels: %d in outlines of their class alone, %d without label or outline, %d otherwise%n", right,
            empty, labels.length - right - empty);
    }
}
